"""The optimizer that a config asks for."""

from torch.optim import AdamW, Optimizer

from nanogpt.config import OptimizerConfig
from nanogpt.optim.groups import Network, grouped
from nanogpt.optim.muon import Muon, Ranks

FUSED_DEVICES = ("cpu", "cuda", "mps")


def build_optimizer(
    model: Network, config: OptimizerConfig, device_type: str, ranks: Ranks | None = None, width: float = 1.0
) -> Optimizer:
    """The optimizer of a model's parameters; AdamW as one fused kernel where the device has it. `ranks` share Muon's
    work, `width` is that of `grouped`. Raises BadInput naming a parameter that the optimizer can't take.
    """
    groups, fused = grouped(model, config, width), device_type in FUSED_DEVICES
    match config.name:
        case "adamw":
            return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
        case "muon" | "normuon":
            return Muon(groups, config, ranks, fused)
