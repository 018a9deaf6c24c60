"""The parts of a block that look at one position at a time.

B batch, T time, C channels.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.config import ModelConfig


class MLP(nn.Module):
    """Two linear layers around a GELU, four times as wide inside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate)))


def norm(config: ModelConfig) -> nn.LayerNorm:
    """Normalises each position over its channels."""
    return nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
