"""Muon (Jordan et al. 2024): hidden matrices are updated by their orthogonalised momentum, the others by AdamW."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from nanogpt.optim import adamw
from nanogpt.optim.declaration import FP32, STACK_BYTES, Group, Kind, OptimizerSpec, Ranks, Shape

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from nanogpt.optim.muon_update import MuonSettings


def state_bytes(kind: Kind, shape: Shape) -> int:
    """Return the bytes of a hidden matrix's momentum, in fp32; of other parameters, AdamW's."""
    return FP32 * prod(shape) if kind == "matrix" else adamw.state_bytes(kind, shape)


def temporary_bytes(matrices: Sequence[Shape]) -> int:
    """Return five times the bytes of the largest stack of matrices (tests/optim/test_muon_bounds.py).

    They are stacked gradients and momenta, iterates, the update and the updated weights. A parameter with several
    matrices counts as one, so this is an upper bound.
    """
    stacks: Counter[Shape] = Counter()
    for shape in matrices:
        stacks[tuple(sorted(shape))] += FP32 * prod(shape)
    return max((5 * min(size, max(STACK_BYTES, FP32 * prod(shape))) for shape, size in stacks.items()), default=0)


def build(groups: list[Group], settings: MuonSettings, ranks: Ranks | None, fused: bool) -> Optimizer:
    """Return Muon for the groups with `split_rows`, and AdamW for the others, in one optimizer."""
    from nanogpt.optim.muon_update import Muon

    return Muon(groups, settings, ranks, fused)


MUON = OptimizerSpec(
    keys=("betas", "eps", "momentum", "momentum_start", "momentum_warmup_steps", "ns_steps", "cautious_decay"),
    decayed=frozenset(("matrix",)),
    width_scaled=frozenset(("head",)),  # an orthogonalised update has the right size at any width
    whole_matrices=True,
    shardable=False,
    state_bytes=state_bytes,
    temporary_bytes=temporary_bytes,
    build=build,
)
