"""The parts of a block that look at one position at a time.

B batch, T time, C channels, F channels inside the MLP.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.config import ModelConfig
from nanogpt.model.dropout import dropout

RMS_EPS = 1e-6


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
