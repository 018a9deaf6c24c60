"""Window of sample number g as a pure function of (seed, g), so that resume, ranks and prefetching need no state.

An epoch is a keyed permutation of the windows of `block_size` tokens. The permutation is a generalised Feistel network
on Z_a x Z_b (Black & Rogaway 2002) with the finaliser of splitmix64 (Steele et al. 2014) as round function, and cycle
walking for the few numbers above n. Each epoch shifts the window borders by a phase, so that no border is permanent.
`order=random` draws offsets with replacement, as nanoGPT does. All arithmetic is on integers, so every platform and
version gives the same result.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_never

UInts = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ROUNDS = 6


def mix(x: UInts) -> UInts:
    """Scramble 64-bit integers one to one (finaliser of splitmix64); arithmetic is modulo 2**64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive_key(*parts: int | str | UInts) -> UInts:
    """Return a 64-bit key for a tuple of numbers and words; arrays broadcast and give an array of keys."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        if isinstance(part, str):
            part = int.from_bytes(part.encode(), "little") % 2**64
        state = mix((state + GOLDEN) ^ mix(np.atleast_1d(np.asarray(part, np.uint64)) + GOLDEN))
    return state


def derive_seed(*parts: int | str) -> int:
    """Return a key as a Python integer for torch.manual_seed."""
    return int(derive_key(*parts)[0] >> np.uint64(1))


def permute(x: UInts, n: int, keys: UInts) -> UInts:
    """Return the image of x in the permutation of 0..n-1 selected by `keys`, elementwise; keys broadcast to x."""
    keys = np.broadcast_to(keys, x.shape)
    b = max(1, int(np.ceil(np.sqrt(n))))
    a, b = np.uint64(-(-n // b)), np.uint64(b)
    y = x.astype(np.uint64)
    todo = np.ones(x.shape, bool)
    while todo.any():  # a * b exceeds n by less than b, so almost all are done after the first pass
        k = keys[todo]
        left, right = y[todo] // b, y[todo] % b
        for r in range(1, ROUNDS + 1):
            c = k ^ (np.uint64(r) * np.array(GOLDEN))
            left = (left + mix(right ^ c) % a) % a
            right = (right + mix(left ^ ~c) % b) % b
        y[todo] = left * b + right
        todo[todo] = y[todo] >= n
    return y


class Sampler:
    """Start offsets of training windows in a split made of shards of `shard_tokens` tokens."""

    def __init__(
        self,
        shard_tokens: Sequence[int],
        block_size: int,
        seed: int,
        order: Literal["permutation", "random"] = "permutation",
    ) -> None:
        self.block_size, self.seed, self.order = block_size, seed, order
        match order:
            case "permutation":  # one window less than fits, to leave room for the phase
                counts = [max(0, n // block_size - 1) for n in shard_tokens]
            case "random":
                counts = [max(0, n - block_size) for n in shard_tokens]
            case _:
                assert_never(order)
        self.ends = np.cumsum(np.array(counts, np.int64))
        self.n_windows = int(self.ends[-1]) if counts else 0
        """Number of windows in an epoch (permutation), or of possible start offsets (random)."""

    def windows(self, first: int, count: int) -> tuple[Offsets, Offsets]:
        """Return (shard, offset in tokens) of samples first..first+count-1, each of shape (count,)."""
        g = np.arange(first, first + count, dtype=np.uint64)
        n = np.uint64(self.n_windows)
        if self.order == "random":
            return self.locate((derive_key(self.seed, "random", g) % n).astype(np.int64), 1, np.zeros(count, np.int64))
        epoch, position = g // n, g % n
        window = permute(position, self.n_windows, derive_key(self.seed, "epoch", epoch))
        phase = derive_key(self.seed, "phase", epoch) % np.uint64(self.block_size)
        return self.locate(window.astype(np.int64), self.block_size, phase.astype(np.int64))

    def locate(self, window: Offsets, stride: int, phase: Offsets) -> tuple[Offsets, Offsets]:
        """Return the shard of each window, and the window's offset in it."""
        shard = np.searchsorted(self.ends, window, side="right")
        before = np.concatenate([[0], self.ends])[shard]
        return shard, (window - before) * stride + phase
