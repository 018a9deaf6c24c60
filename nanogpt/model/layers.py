"""The layers of a block that treat each position separately: the MLP and the norms.

B batch, T time, C channels, F channels inside the MLP.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import assert_never

from nanogpt.config import Activation, ModelConfig
from nanogpt.model.dropout import Dropout

RMS_EPS = 1e-6


class MLP(nn.Module):
    """Two linear layers around an activation. A gate (Shazeer 2020) is computed by the first layer too."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        inside = config.mlp_width
        self.c_fc = nn.Linear(config.n_embd, 2 * inside if config.is_gated else inside, bias=config.bias)
        self.c_proj = nn.Linear(inside, config.n_embd, bias=config.bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the MLP's output: (B, T, C) -> (B, T, C). `keys`, (B,), are dropout keys; None: no dropout."""
        return self.dropout(self.c_proj(self.activate(self.c_fc(x))), keys)

    def activate(self, x: Tensor) -> Tensor:
        """Apply the activation: (B, T, F), with a gate (B, T, 2 F), -> (B, T, F)."""
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
    """Build a norm over the channels: LayerNorm, or RMSNorm (Zhang & Sennrich 2019) without mean and bias."""
    if config.norm_subtracts_mean:
        return LayerNorm(config.n_embd, eps=1e-5, elementwise_affine=config.norm_affine, bias=config.bias)
    return RMSNorm(config.n_embd, RMS_EPS, config.norm_affine)


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm, in fp32 also if FSDP gathered its parameters in half precision. (…, C) -> (…, C)."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = as_fp32_under_autocast(self.weight), as_fp32_under_autocast(self.bias)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, in fp32 also if FSDP gathered its weight in half precision. (…, C) -> (…, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, as_fp32_under_autocast(self.weight), self.eps)


def as_fp32_under_autocast(parameter: Tensor | None) -> Tensor | None:
    """Return a norm's parameter, converted to fp32 under autocast. Without FSDP it already is fp32."""
    if parameter is None or not torch.is_autocast_enabled(parameter.device.type):
        return parameter
    return parameter.float()
