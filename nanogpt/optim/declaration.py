"""What the rest of the program needs to know of an optimizer.

Each optimizer's own file declares it. Imports no torch: plans and sizes are computed without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

Kind = Literal["embedding", "head", "matrix", "vector"]
"""`matrix`: a weight of attention or MLP. `vector`: gains, biases, taps of short convolutions."""
Shape = tuple[int, ...]
Group = dict[str, Any]
"""One of torch's `param_groups`. Ours also have `peak_lr`, `muon_momentum` and `split_rows`."""
FP32 = 4
STACK_BYTES = 320 * 2**20
"""Bytes of fp32 matrices that a step of Muon works on at a time. Fewer take less memory, more take fewer launches."""


class Ranks(Protocol):
    """The ranks that hold the same weights and gradients, and can share the work of a step."""

    rank: int
    world: int

    def start_all_gather(self, share: Tensor, count: int) -> Callable[[], Tensor]:
        """Begin to gather `count` rows, of which each rank comes with equally many, (k, …), the last ones filled up.

        Returns a function that waits for (count or more, …), the same bits on every rank.
        """
        ...


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer: which parameters it treats how, what it keeps, how it is built. Nothing has a default."""

    keys: tuple[str, ...]
    """Keys of OptimizerConfig that it reads, beside learning rates, weight_decay and grad_clip. Others are refused."""
    decayed: frozenset[Kind]
    """Kinds of parameters that weight decay applies to."""
    width_scaled: frozenset[Kind]
    """Kinds whose learning rate muP divides, and whose decay it multiplies, by the width multiplier."""
    whole_matrices: bool
    """Whether its groups of hidden matrices need `split_rows`: how many rows each matrix in a parameter has."""
    shardable: bool
    """Whether it may see a part of each parameter only (hardware.strategy=fsdp)."""
    state_bytes: Callable[[Kind, Shape], int]
    """Bytes that it keeps of one parameter from step to step, in memory and in checkpoints."""
    temporary_bytes: Callable[[Sequence[Shape]], int]
    """Most bytes that a step allocates beside that, for these hidden matrices, all of them."""
    build: Callable[[list[Group], Any, Ranks | None, bool], Optimizer]
    """The optimizer of groups, an OptimizerConfig, the ranks that share its work, and whether its kernels are fused."""
