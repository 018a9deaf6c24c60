"""The parts of a block that look at one position at a time.

B batch, T time, C channels.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.config import ModelConfig
from nanogpt.model.dropout import dropout


class MLP(nn.Module):
    """Two linear layers around a GELU, four times as wide inside."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout = layer, config.dropout
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); `keys`, (B,), switch dropout on."""
        x = self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate))
        return dropout(x, self.dropout, keys, 3 * self.layer + 3)


def norm(config: ModelConfig) -> nn.LayerNorm:
    """Normalises each position over its channels."""
    return nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
