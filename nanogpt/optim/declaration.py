"""Declaration of an optimizer, made in its file.

Imports no torch, so that plans can be computed without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

Kind = Literal["embedding", "head", "matrix", "vector"]
"""`matrix`: weights of attention and MLP. `vector`: gains, biases and taps of short convolutions."""
Shape = tuple[int, ...]
Group = dict[str, Any]
"""An entry of torch's `param_groups`, which here also has `peak_lr`, `muon_momentum` and `split_rows`."""
FP32 = 4
STACK_BYTES = 320 * 2**20
"""Bytes of fp32 matrices that Muon updates together. Smaller stacks need less memory, larger ones fewer kernels."""


class Ranks(Protocol):
    """Ranks with equal weights and gradients, which share the work of a step."""

    rank: int
    world: int

    def start_all_gather(self, share: Tensor, count: int) -> Callable[[], Tensor]:
        """Start an all-gather of `count` rows. Every rank passes k of them, (k, …); the last ranks pad theirs.

        Returns a function that waits for the rows, (count or more, …), bitwise equal on all ranks.
        """
        ...


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer: its config keys, treatment of parameters, memory and constructor. No field has a default."""

    keys: tuple[str, ...]
    """Keys of OptimizerConfig that it reads, besides learning rates, weight_decay and grad_clip. Others are errors."""
    decayed: frozenset[Kind]
    """Kinds of parameters with weight decay."""
    width_scaled: frozenset[Kind]
    """Kinds for which muP divides the learning rate, and multiplies the decay, by the width multiplier."""
    whole_matrices: bool
    """Updates whole matrices: its groups have `split_rows`, the rows of each matrix in a parameter."""
    shardable: bool
    """Can update a shard of each parameter (hardware.strategy=fsdp)."""
    state_bytes: Callable[[Kind, Shape], int]
    """Bytes of its state for a parameter, in memory and in checkpoints."""
    temporary_bytes: Callable[[Sequence[Shape]], int]
    """Peak of temporary bytes in a step, given the shapes of all hidden matrices."""
    build: Callable[[list[Group], Any, Ranks | None, bool], Optimizer]
    """Builds it from groups, an OptimizerConfig, the ranks that share its work, and whether kernels are fused."""
