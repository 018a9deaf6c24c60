"""The data order: a permutation in every epoch, the same on every machine, from nothing but numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.data.sampler import Sampler, derive_key, derive_seed, mix, permute

MASK = 2**64 - 1


def plain_mix(x: int) -> int:
    """Return the finaliser of splitmix64, in Python integers."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


@given(st.integers(0, MASK))
def test_mix_is_splitmix64(x: int) -> None:
    assert int(mix(np.array([x], np.uint64))[0]) == plain_mix(x)


def test_splitmix64_reference() -> None:
    """The first output of the published splitmix64 with seed 0: mix of the golden ratio."""
    assert plain_mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


@given(st.integers(1, 3000), st.integers(0, MASK))
def test_every_epoch_is_a_permutation(n: int, seed: int) -> None:
    images = permute(np.arange(n, dtype=np.uint64), n, derive_key(seed))
    assert sorted(images.tolist()) == list(range(n))


@pytest.mark.parametrize(
    "n", [882_381, pytest.param(8_823_809, marks=pytest.mark.slow)]
)  # OpenWebText's windows of 1,024
def test_large_and_mixed_keys(n: int) -> None:
    images = permute(np.arange(n, dtype=np.uint64), n, derive_key(1))
    assert np.bincount(images.astype(np.int64), minlength=n).max() == 1
    assert abs(np.corrcoef(np.arange(100_000), images[:100_000].astype(float))[0, 1]) < 0.02


@pytest.mark.parametrize("order", ["permutation", "random"])
def test_windows_stay_inside_their_shard(order: str) -> None:
    sizes = [1000, 50, 301, 64, 129]
    sampler = Sampler(sizes, 64, seed=3, order=order)  # type: ignore[arg-type]
    shard, offset = sampler.windows(0, 5000)
    assert (offset >= 0).all() and (offset + 65 <= np.array(sizes)[shard]).all()


def test_an_epoch_covers_every_window_once_and_borders_move() -> None:
    sampler = Sampler([6500], 64, seed=3)
    n = sampler.n_windows
    first = sampler.windows(0, n)[1]
    second = sampler.windows(n, n)[1]
    assert len(set((first // 64).tolist())) == n == 100
    assert len({int(offset) % 64 for offset in first}) == 1
    assert first[0] % 64 != second[0] % 64
    assert (first // 64).tolist() != (second // 64).tolist()


def test_any_slice_gives_the_same_samples() -> None:
    """What resume and ranks rely on: sample g doesn't depend on how it was asked for."""
    sampler = Sampler([10_000, 7_000], 32, seed=5)
    whole = np.stack(sampler.windows(0, 1200))
    for first, count in [(0, 1), (7, 13), (500, 200), (1199, 1)]:
        assert (np.stack(sampler.windows(first, count)) == whole[:, first : first + count]).all()


def test_the_order_is_written_in_stone() -> None:
    """These numbers were drawn once. If they change, every run that is being resumed changes its data: don't."""
    assert derive_seed(1337, "init") == 7502287149539954667
    sampler = Sampler([9_035_582_198], 1024, 1337)
    assert sampler.windows(0, 4)[1].tolist() == [8834745881, 3919868441, 4088918553, 2968478233]
    sampler = Sampler([1_003_854], 64, 1337, "random")
    assert sampler.windows(0, 4)[1].tolist() == [183318, 478264, 188240, 440590]


def test_random_order_is_uniform() -> None:
    offsets = Sampler([10_064], 64, 1, "random").windows(0, 100_000)[1]
    counts = np.bincount(offsets // 100, minlength=100)
    assert counts.min() > 850 and counts.max() < 1150  # 1,000 expected, standard deviation 32
