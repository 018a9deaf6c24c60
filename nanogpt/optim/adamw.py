"""AdamW (Loshchilov & Hutter 2019), torch's."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Protocol

from nanogpt.optim.declaration import FP32, Group, Kind, OptimizerSpec, Ranks, Shape

if TYPE_CHECKING:
    from torch.optim import Optimizer


class AdamWSettings(Protocol):
    """The keys of OptimizerConfig that AdamW reads."""

    lr: float
    betas: tuple[float, float]
    eps: float


def state_bytes(_: Kind, shape: Shape) -> int:
    """Return the bytes of a parameter's first and second moment, both in fp32."""
    return 2 * FP32 * prod(shape)


def build(groups: list[Group], settings: AdamWSettings, _: Ranks | None, fused: bool) -> Optimizer:
    """Return torch's AdamW, as one fused kernel if `fused`."""
    from torch.optim import AdamW

    return AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


ADAMW = OptimizerSpec(
    keys=("betas", "eps"),
    decayed=frozenset(("embedding", "head", "matrix")),  # with a single rate: nanoGPT's two groups
    # Adam changes every weight by about the learning rate, whatever the gradient, so the change of an output grows with
    # the number of inputs (Yang et al. 2022, table 3).
    width_scaled=frozenset(("head", "matrix")),
    whole_matrices=False,
    shardable=True,
    state_bytes=state_bytes,
    temporary_bytes=lambda _: 0,
    build=build,
)
