"""NorMuon (Li et al. 2025): Muon with row-wise normalized updates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nanogpt.optim import muon
from nanogpt.optim.declaration import FP32, Group, Kind, Ranks, Shape
from nanogpt.optim.muon import MUON

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from nanogpt.optim.muon_update import MuonSettings


def state_bytes(kind: Kind, shape: Shape) -> int:
    """Return Muon's bytes, and one more number per row of a hidden matrix."""
    return muon.state_bytes(kind, shape) + (FP32 * shape[0] if kind == "matrix" else 0)


def build(groups: list[Group], settings: MuonSettings, ranks: Ranks | None, fused: bool) -> Optimizer:
    """Return NorMuon for the groups with `split_rows`, and AdamW for the others, in one optimizer."""
    from nanogpt.optim.muon_update import NorMuon

    return NorMuon(groups, settings, ranks, fused)


NORMUON = replace(MUON, keys=(*MUON.keys, "row_beta"), state_bytes=state_bytes, build=build)
