"""AdamW with nanoGPT's two groups: matrices and embeddings decay, biases and norms don't."""

from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from nanogpt.config import OptimizerConfig

FUSED_DEVICES = ("cpu", "cuda", "mps")


def build_optimizer(model: nn.Module, config: OptimizerConfig, device_type: str) -> Optimizer:
    """The optimizer of a model's parameters, one fused kernel where the device has it."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=device_type in FUSED_DEVICES)
