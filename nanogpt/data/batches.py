"""Windows of tokens as tensors: training batches of any step, and the fixed windows of an evaluation.

B batch, T time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanogpt.config import TrainConfig
from nanogpt.data.dataset import Split
from nanogpt.data.prefetch import Prefetcher
from nanogpt.data.sampler import Offsets, Sampler, derive_key
from nanogpt.errors import BadData

SAMPLES_PER_LOOKUP = 4096  # samples placed by one call of the sampler, which costs the same for one as for hundreds


class Batch(NamedTuple):
    """One micro-batch on the device."""

    ids: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64, `ids` one to the right."""
    keys: Tensor | None
    """(B,) int64, which dropout masks each sequence gets; None without dropout."""


HostBatch = tuple[Tensor, Tensor | None]
"""Windows, (B, T + 1), and keys of a Batch, on the CPU."""


class TrainBatches:
    """The micro-batches of any optimizer step: a function of the config's seed and the step's first sample alone.

    A step of `world` ranks is cut into micro-batches, and rank r takes number r, r + world, r + 2 world, …
    """

    def __init__(
        self,
        split: Split,
        config: TrainConfig,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        prefetch: bool | None = None,
    ) -> None:
        """With `ahead` a thread prepares the next ones; null: on a GPU alone, which works meanwhile."""
        self.split, self.device, self.rank, self.world = split, device, rank, world
        self.block_size, self.seed, self.dropout = config.model.block_size, config.training.seed, config.model.dropout
        self.micro_batch_size, self.grad_accum = config.micro_batch_size(world), config.grad_accum(world)
        self.sampler = Sampler(split.shard_tokens, self.block_size, config.training.seed, config.data.order)
        self.stride = world * self.micro_batch_size
        self.located: tuple[int, Offsets, Offsets] | None = None
        if self.sampler.n_windows < 1:
            raise BadData(
                f"the {split.name} split has {split.n_tokens} tokens in {len(split.shards)} files; "
                f"model.block_size={self.block_size} needs {2 * self.block_size} in one of them"
            )
        threaded = device.type == "cuda" if prefetch is None else prefetch
        self.ahead = Prefetcher(self.read_host_batch, self.stride, device) if threaded else None

    def close(self) -> None:
        """End the thread, if there is one."""
        if self.ahead:
            self.ahead.close()

    def first_samples(self, first_sample: int) -> list[int]:
        """The first sample of each of this rank's micro-batches of the step that starts at `first_sample`."""
        return [first_sample + self.rank * self.micro_batch_size + i * self.stride for i in range(self.grad_accum)]

    def micro_batches(self, first_sample: int) -> Iterator[Batch]:
        """This rank's micro-batches of the step that starts at a sample."""
        take = self.ahead.take if self.ahead else self.read_host_batch
        return (self.to_device(take(first)) for first in self.first_samples(first_sample))

    def read_batch(self, first: int) -> Batch:
        """Samples first..first+B-1."""
        return self.to_device(self.read_host_batch(first))

    def read_host_batch(self, first: int) -> HostBatch:
        """The same in the memory of the CPU."""
        windows = read_host_windows(self.split, self.locate_samples(first), self.block_size, self.device)
        keys = self.dropout_keys(range(first, first + self.micro_batch_size)) if self.dropout else None
        return windows, keys

    def to_device(self, batch: HostBatch) -> Batch:
        """Copied without waiting for it."""
        windows, keys = batch
        keys = keys if keys is None else keys.to(self.device, non_blocking=self.device.type == "cuda")
        return Batch(*to_inputs_and_targets(windows, self.device), keys)

    def locate_samples(self, first: int) -> list[tuple[int, int]]:
        """(shard, offset) of the samples of a micro-batch."""
        return [self.locate_sample(g) for g in range(first, first + self.micro_batch_size)]

    def dropout_keys(self, samples: range) -> Tensor:
        """The dropout key of every sample of the run, on the CPU."""
        numbers = np.arange(samples.start, samples.stop, dtype=np.uint64)
        return pin_memory(torch.from_numpy(derive_key(self.seed, "dropout", numbers).astype(np.int64)), self.device)

    def locate_sample(self, sample: int) -> tuple[int, int]:
        """(shard, offset) of one sample; from any thread."""
        group, index = divmod(sample, SAMPLES_PER_LOOKUP)
        placed = self.located
        if placed is None or placed[0] != group:
            self.located = placed = group, *self.sampler.windows(group * SAMPLES_PER_LOOKUP, SAMPLES_PER_LOOKUP)
        return int(placed[1][index]), int(placed[2][index])


def read_windows(
    split: Split, places: list[tuple[int, int]], block_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(inputs, targets), each (B, T): T + 1 tokens from every place, targets one to the right."""
    return to_inputs_and_targets(read_host_windows(split, places, block_size, device), device)


def read_host_windows(split: Split, places: list[tuple[int, int]], block_size: int, device: torch.device) -> Tensor:
    """(B, T + 1) tokens from every place, on the CPU, ready to be copied to `device`."""
    rows = np.stack([split.read(shard, offset, block_size + 1) for shard, offset in places])
    return pin_memory(torch.from_numpy(rows), device)


def pin_memory(tensor: Tensor, device: torch.device) -> Tensor:
    """In memory that a GPU copies from by itself."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_inputs_and_targets(windows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, T + 1) -> inputs and targets on the device, each (B, T)."""
    windows = windows.to(device, non_blocking=device.type == "cuda")
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def evaluation_windows(split: Split, block_size: int, tokens: int | None) -> list[tuple[int, int]]:
    """Disjoint windows for an evaluation: every one of the split, or as many as hold `tokens`, spread over it evenly.

    The last few tokens of a shard that don't fill a window are left out. Raises BadData when there is no window.
    """
    counts = [(n_tokens - 1) // block_size for n_tokens in split.shard_tokens]
    total = sum(counts)
    if total < 1:
        raise BadData(
            f"the {split.name} split has {split.n_tokens} tokens, model.block_size={block_size} needs {block_size + 1}"
        )
    wanted = total if tokens is None else min(total, -(-tokens // block_size))
    window = np.arange(wanted) * total // wanted
    ends = np.cumsum(counts)
    shard = np.searchsorted(ends, window, side="right")
    offset = (window - np.concatenate([[0], ends])[shard]) * block_size
    return list(zip(shard.tolist(), offset.tolist(), strict=True))
