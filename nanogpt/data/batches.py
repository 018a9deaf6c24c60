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

SAMPLES_PER_LOOKUP = 4096  # one call of the sampler costs as much for a single sample as for hundreds


class Batch(NamedTuple):
    """One micro-batch on the device."""

    ids: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64, `ids` shifted left by one token."""
    keys: Tensor | None
    """(B,) int64 that select the dropout mask of each sequence; None without dropout."""


HostBatch = tuple[Tensor, Tensor | None]
"""Windows, (B, T + 1), and keys of a Batch, on the CPU."""


class TrainBatches:
    """Micro-batches of any optimizer step, a pure function of the config's seed and the step's first sample.

    A step of `world` ranks is cut into micro-batches; rank r takes number r, r + world, r + 2 world, …
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
        """Raise BadData if the split is too short. `prefetch` prepares batches in a thread; null: only for a GPU."""
        self.split, self.device, self.rank, self.world = split, device, rank, world
        self.block_size, self.seed, self.dropout = config.model.block_size, config.training.seed, config.model.dropout
        self.micro_batch_size, self.grad_accum = config.micro_batch_size(world), config.grad_accum(world)
        self.sampler = Sampler(split.shard_tokens, self.block_size, config.training.seed, config.data.order)
        self.stride = world * self.micro_batch_size
        self.lookup: tuple[int, Offsets, Offsets] | None = None
        if self.sampler.n_windows < 1:
            raise BadData(
                f"the {split.name} split has {split.n_tokens} tokens in {len(split.shards)} files; "
                f"model.block_size={self.block_size} needs {2 * self.block_size} in one of them"
            )
        threaded = device.type == "cuda" if prefetch is None else prefetch
        self.prefetcher = Prefetcher(self.read_host_batch, self.stride, device) if threaded else None

    def close(self) -> None:
        """End the prefetching thread, if there is one."""
        if self.prefetcher:
            self.prefetcher.close()

    def first_samples(self, first_sample: int) -> list[int]:
        """Return the first sample of each micro-batch of this rank, in the step that starts at `first_sample`."""
        return [first_sample + self.rank * self.micro_batch_size + i * self.stride for i in range(self.grad_accum)]

    def micro_batches(self, first_sample: int) -> Iterator[Batch]:
        """Return this rank's micro-batches of the step that starts at `first_sample`."""
        take = self.prefetcher.take if self.prefetcher else self.read_host_batch
        return (self.to_device(take(first)) for first in self.first_samples(first_sample))

    def read_batch(self, first: int) -> Batch:
        """Return the micro-batch of samples first..first+B-1."""
        return self.to_device(self.read_host_batch(first))

    def read_host_batch(self, first: int) -> HostBatch:
        """Return the micro-batch of samples first..first+B-1 on the CPU."""
        windows = read_host_windows(self.split, self.locate_samples(first), self.block_size, self.device)
        if not self.dropout:
            return windows, None
        samples = np.arange(first, first + self.micro_batch_size, dtype=np.uint64)
        keys = derive_key(self.seed, "dropout", samples).astype(np.int64)
        return windows, pin_memory(torch.from_numpy(keys), self.device)

    def to_device(self, batch: HostBatch) -> Batch:
        """Copy a batch to the device; on a GPU without waiting for the copy."""
        windows, keys = batch
        keys = keys if keys is None else keys.to(self.device, non_blocking=self.device.type == "cuda")
        return Batch(*to_inputs_and_targets(windows, self.device), keys)

    def locate_samples(self, first: int) -> list[tuple[int, int]]:
        """Return (shard, offset) of each sample of a micro-batch. Safe to call from any thread."""
        located: list[tuple[int, int]] = []
        for sample in range(first, first + self.micro_batch_size):
            group, index = divmod(sample, SAMPLES_PER_LOOKUP)
            lookup = self.lookup  # read once: another thread may replace it
            if lookup is None or lookup[0] != group:
                self.lookup = lookup = group, *self.sampler.windows(group * SAMPLES_PER_LOOKUP, SAMPLES_PER_LOOKUP)
            located.append((int(lookup[1][index]), int(lookup[2][index])))
        return located


def read_host_windows(split: Split, starts: list[tuple[int, int]], block_size: int, device: torch.device) -> Tensor:
    """Return windows of T + 1 tokens, (B, T + 1) on the CPU; `starts` are (shard, offset), `device` the target."""
    rows = np.stack([split.read(shard, offset, block_size + 1) for shard, offset in starts])
    return pin_memory(torch.from_numpy(rows), device)


def pin_memory(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor in pinned memory if `device` is a GPU, so that copies to it are asynchronous."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_inputs_and_targets(windows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, each (B, T) on the device, of windows (B, T + 1)."""
    windows = windows.to(device, non_blocking=device.type == "cuda")
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def evaluation_windows(split: Split, block_size: int, tokens: int | None) -> list[tuple[int, int]]:
    """Return (shard, offset) of disjoint windows: all of the split, or enough for `tokens`, evenly spread.

    The last tokens of a shard that don't fill a window are left out. Raises BadData if there is no window.
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
