"""The parts of a block that look at one position at a time.

B batch, T time, C channels, F channels inside the MLP, P rows of a wide matrix.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.config import ModelConfig
from nanogpt.model.dropout import dropout

RMS_EPS = 1e-6
FEW, WIDE, PIECES = 16, 8192, 32  # rows up to which, outputs from which, and at most how many pieces


class MLP(nn.Module):
    """Two linear layers around a nonlinearity; the gated form (Shazeer 2020) computes its gate beside its values."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout, self.activation = layer, config.dropout, config.activation
        inside = config.mlp_width
        self.c_fc = nn.Linear(config.n_embd, 2 * inside if self.activation == "swiglu" else inside, bias=config.bias)
        self.c_proj = nn.Linear(inside, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); `keys`, (B,), switch dropout on."""
        x = self.c_proj(self.activated(self.c_fc(x)))
        return dropout(x, self.dropout, keys, 3 * self.layer + 3)

    def activated(self, x: Tensor) -> Tensor:
        """(B, T, F), of the gated form (B, T, 2 F), -> (B, T, F)."""
        if self.activation == "swiglu":
            gate, value = x.chunk(2, dim=2)
            return F.silu(gate) * value
        if self.activation == "relu2":
            return F.relu(x).square()
        return F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")


def norm(config: ModelConfig) -> nn.Module:
    """Normalises each position over its channels; the RMS form (Zhang & Sennrich 2019) has no mean and no bias."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, RMS_EPS)
    return nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)


def wide_linear(x: Tensor, weight: Tensor) -> Tensor:
    """(B, C), (P, C) -> (B, P), x weight^T.

    For a few rows and a very wide matrix a CPU's fp32 product is far slower than memory; in pieces it isn't: 9 ms
    instead of 24 for 8 rows, 768 channels and 50,304 outputs on two cores.
    """
    B, P = len(x), len(weight)
    if not (1 < B <= FEW and P >= WIDE and weight.dtype == torch.float32 and weight.device.type == "cpu"):
        return F.linear(x, weight)
    count = next(n for n in range(PIECES, 0, -1) if P % n == 0)
    pieces = weight.unflatten(0, (count, -1)).transpose(1, 2)  # (count, C, P / count)
    return (x.expand(count, *x.shape) @ pieces).transpose(0, 1).flatten(1)
