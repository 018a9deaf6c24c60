"""The parts of a block that look at one position at a time.

B batch, T time, C channels, F channels inside the MLP, P rows of a wide matrix.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import assert_never

from nanogpt.config import Activation, ModelConfig
from nanogpt.model.dropout import dropout

RMS_EPS = 1e-6
FEW, WIDE, PIECES = 16, 8192, 32  # rows up to which, outputs from which, and at most how many pieces


class MLP(nn.Module):
    """Two linear layers around a nonlinearity; the gated form (Shazeer 2020) computes its gate beside its values."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout = layer, config.dropout
        self.activation: Activation = config.activation
        inside = config.mlp_width
        self.c_fc = Linear(config.n_embd, 2 * inside if config.is_gated else inside, bias=config.bias)
        self.c_proj = Linear(inside, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); `keys`, (B,), switch dropout on."""
        x = self.c_proj(self.activate(self.c_fc(x)))
        return dropout(x, self.dropout, keys, 3 * self.layer + 3)

    def activate(self, x: Tensor) -> Tensor:
        """(B, T, F), of the gated form (B, T, 2 F), -> (B, T, F)."""
        match self.activation:
            case "swiglu":
                gate, value = x.chunk(2, dim=2)
                return F.silu(gate) * value
            case "relu2":
                return F.relu(x).square()
            case "gelu_tanh":
                return F.gelu(x, approximate="tanh")
            case "gelu":
                return F.gelu(x)
            case _:
                assert_never(self.activation)


def build_norm(config: ModelConfig) -> nn.Module:
    """Normalises each position over its channels; the RMS form (Zhang & Sennrich 2019) has no mean and no bias."""
    if config.norm_subtracts_mean:
        return LayerNorm(config.n_embd, eps=1e-5, elementwise_affine=config.norm_affine, bias=config.bias)
    return RMSNorm(config.n_embd, RMS_EPS, config.norm_affine)


class LayerNorm(nn.LayerNorm):
    """torch's, computed in fp32 where sharded weights were gathered in half precision."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, C) -> (…, C)."""
        return F.layer_norm(
            input,
            self.normalized_shape,
            as_fp32_under_autocast(self.weight),
            as_fp32_under_autocast(self.bias),
            self.eps,
        )


class RMSNorm(nn.RMSNorm):
    """torch's, computed in fp32 where sharded weights were gathered in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) -> (…, C)."""
        return F.rms_norm(x, self.normalized_shape, as_fp32_under_autocast(self.weight), self.eps)


def as_fp32_under_autocast(parameter: Tensor | None) -> Tensor | None:
    """Return a norm's parameter under autocast in fp32, which it is where weights aren't sharded."""
    if parameter is None or not torch.is_autocast_enabled(parameter.device.type):
        return parameter
    return parameter.float()


class Linear(nn.Linear):
    """x weight^T + bias, fast for the few rows of decoding too."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, C) -> (…, P)."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(…, C), (P, C), (P,) -> (…, P).

    For few rows a CPU's fp32 product uses one thread, or is far slower than memory; in pieces it isn't. One row and
    3,072 outputs: 0.38 ms instead of 0.73; 8 rows and 50,304 outputs: 9 ms instead of 24 (768 channels, two cores).
    """
    count = pieces(x.numel() // x.shape[-1], weight)
    if count == 1:
        return F.linear(x, weight, bias)
    parts = weight.unflatten(0, (count, -1)).transpose(1, 2)  # (count, C, P / count)
    rows = x.reshape(-1, x.shape[-1])
    y = (rows.expand(count, *rows.shape) @ parts).transpose(0, 1).flatten(1).view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def pieces(rows: int, weight: Tensor) -> int:
    """How many a product is made in."""
    if rows > FEW or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return 1
    several = PIECES if len(weight) >= WIDE else torch.get_num_threads() if rows == 2 else 1
    most = torch.get_num_threads() if rows == 1 else several
    return next(n for n in range(most, 0, -1) if len(weight) % n == 0)
