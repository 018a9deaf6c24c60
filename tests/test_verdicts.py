"""Verdicts on settings against scipy's tests, against a two-way analysis, and over thousands of simulated studies."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from nanogpt.verdicts import Losses, estimate_luck, estimate_noise, judge_settings


def study(
    means: Sequence[float], seeds: int | Sequence[int], rng: np.random.Generator, blocks: float = 0.0
) -> list[Losses]:
    """Draw losses with variance 1, and a difference between seeds with variance blocks² that all settings share."""
    sizes = [seeds] * len(means) if isinstance(seeds, int) else list(seeds)
    shift = rng.normal(0, blocks, max(sizes))
    return [
        {seed: float(m + shift[seed] + rng.normal()) for seed in range(n)} for m, n in zip(means, sizes, strict=True)
    ]


def values(losses: Losses) -> list[float]:
    return list(losses.values())


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (2, 5, 3, 4)])
def test_intervals_are_those_of_scipy(sizes: tuple[int, ...]) -> None:
    settings = study([0, 1, 2, 5], sizes, np.random.default_rng(3))
    judged = judge_settings(settings)
    assert judged.noise is not None and not judged.noise.blocked and len(judged.noise.shared) == 4
    theirs = stats.tukey_hsd(*map(values, settings))
    interval = theirs.confidence_interval(0.95)
    for i, verdict in enumerate(judged.verdicts):
        if i != judged.reference:
            assert verdict.half is not None
            assert verdict.difference - verdict.half == pytest.approx(interval.low[i, judged.reference], abs=1e-6)
            assert verdict.difference + verdict.half == pytest.approx(interval.high[i, judged.reference], abs=1e-6)
            assert (verdict.kind == "worse") == (theirs.pvalue[i, judged.reference] < 0.05)


def test_two_sides_are_a_t_test() -> None:
    a, b = study([0, 1], 6, np.random.default_rng(5))
    _, verdict = judge_settings([a, b], reference=0).verdicts
    low, high = stats.ttest_ind(values(b), values(a)).confidence_interval(0.95)
    assert verdict.half is not None
    assert (verdict.difference - verdict.half, verdict.difference + verdict.half) == pytest.approx(
        (low, high), abs=1e-6
    )


def test_two_sides_of_different_variance_are_welchs() -> None:
    rng = np.random.default_rng(5)
    a, b = (dict(enumerate(map(float, rng.normal(0, sd, 8)))) for sd in (0.1, 3.0))
    judged = judge_settings([a, b], reference=0)
    low, high = stats.ttest_ind(values(b), values(a), equal_var=False).confidence_interval(0.95)
    half = judged.verdicts[1].half
    assert judged.noise is not None and judged.noise.shared == {0} and half is not None
    assert half == pytest.approx((high - low) / 2, rel=0.01)  # degrees of freedom are rounded down to halves


def test_differences_between_seeds_are_removed() -> None:
    """With two settings and common seeds that is the paired t test."""
    rng = np.random.default_rng(7)
    shift = rng.normal(0, 10, 6)
    a, b = ({s: float(shift[s] + rng.normal(m, 0.3)) for s in range(6)} for m in (0, 1))
    judged = judge_settings([a, b])
    low, high = stats.ttest_rel(values(b), values(a)).confidence_interval(0.95)
    half = judged.verdicts[1].half
    assert judged.noise is not None and judged.noise.blocked and half is not None
    assert half == pytest.approx((high - low) / 2, abs=1e-6)
    other_seeds = judge_settings([a, {seed + 6: loss for seed, loss in b.items()}])
    assert other_seeds.noise is not None and not other_seeds.noise.blocked


def test_a_wild_setting_does_not_widen_the_others() -> None:
    spreads = {0.0: 1.0, 10.0: 0.8, 20.0: 1.2, 30.0: 0.9}  # their means are their seeds too: no seed occurs twice
    settings: list[Losses] = [{int(m) + i: m + i * w for i in (-1, 0, 1)} for m, w in spreads.items()]
    wild = {1: -200.0, 2: 30.0, 3: 400.0}
    alone, beside = estimate_noise(settings), estimate_noise([*settings, wild])
    assert alone is not None and beside is not None
    assert beside.shared == {0, 1, 2, 3} and beside.variances[0] == alone.variances[0] < beside.variances[4] / 1000


def test_one_seed_borrows_the_noise_of_the_others() -> None:
    first, second = {1: 2.0, 2: 2.2}, {1: 9.0}
    _, verdict = judge_settings([first, second]).verdicts
    half = stats.t.ppf(0.975, 1) * math.sqrt(0.02 * (1 / 2 + 1))
    assert verdict.kind == "worse" and verdict.half == pytest.approx(half, rel=1e-6)


@pytest.mark.parametrize("settings", [[{1: 1.0}, {1: 2.0}], [{1: 1.0, 2: 1.0}, {1: 2.0, 2: 2.0}]])
def test_nothing_is_said_without_noise(settings: list[Losses]) -> None:
    judged = judge_settings(settings, tolerance=5)
    assert judged.noise is None and judged.corrected_mean is None
    assert [(v.kind, v.half) for v in judged.verdicts] == [("reference", None), ("undecided", None)]


def test_equivalent_is_what_surely_lies_within_the_tolerance() -> None:
    settings = study([0, 0.02, 30], 400, np.random.default_rng(1))
    assert [v.kind for v in judge_settings(settings, tolerance=0.5).verdicts] == ["reference", "equivalent", "worse"]
    assert judge_settings(settings, reference=2).verdicts[0].kind == "better"
    assert judge_settings(settings, tolerance=0.01).verdicts[1].kind == "undecided"


def test_the_advised_seeds_tell_the_difference_in_four_of_five_studies() -> None:
    rng = np.random.default_rng(2)
    pilot = [{s: float(v) for s, v in enumerate((m - 1, m, m + 1))} for m in (0.0, 1.0)]  # variance 1, difference 1
    seeds = judge_settings(pilot).verdicts[1].seeds
    assert seeds is not None
    told = [judge_settings(study([0, 1], seeds, rng), reference=0).verdicts[1].kind == "worse" for _ in range(300)]
    assert 0.75 < np.mean(told) < 0.99  # three seeds' factor is larger than that of more


def test_the_luck_of_the_best_of_many() -> None:
    """The expected minimum of k standard normal numbers, from tables: -1.0 for 2 x 0.8463 (k=3), -1.6292 (k=12)."""
    equal = np.zeros(12) + np.array([1e-9, *[0.0] * 11])
    assert estimate_luck(equal.tolist(), [1.0] * 12) == pytest.approx(1.6292, abs=0.05)
    assert estimate_luck([0.0, 50.0], [1.0, 1.0]) == pytest.approx(0, abs=0.05)
    assert estimate_luck([3.0], [1.0]) == pytest.approx(0, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("means", "seeds", "blocks"),
    [
        ([0.0] * 2, 3, 0.0),
        ([0.2 * (x - 4) ** 2 for x in range(9)], 3, 0.3),
        ([0.0, 0.5, 1.0, 2.0, 0.0, 0.0], (1, 3, 1, 4, 1, 3), 0.0),
    ],
    ids=["equal", "valley", "single"],
)
def test_ten_thousand_studies(means: list[float], seeds: int | tuple[int, ...], blocks: float) -> None:
    """All intervals of a study hold in 95 % of studies, and no setting as good as the best is called worse in 5 %."""
    rng, missed, wrong = np.random.default_rng(4), 0, 0
    for _ in range(10_000):
        judged = judge_settings(study(means, seeds, rng, blocks))
        base = means[judged.reference]
        others = [(v, m - base) for v, m in zip(judged.verdicts, means, strict=True) if v.half is not None]
        missed += any(abs(v.difference - true) > v.half for v, true in others if v.half is not None)
        wrong += any(v.kind == "worse" and true <= 0 for v, true in others)
    assert missed < 600 and wrong < 600  # 500 are expected at most; the choices of blocks and pools cost a little
