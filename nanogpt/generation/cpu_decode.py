"""Faster matrix products for decoding on a CPU, by other memory layouts and by splitting the weights.

C input channels, P output channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.model.gpt import GPT

TRANSPOSED_ROWS = 2  # largest number of texts for which wide matrices are faster with contiguous columns
FEW, WIDE, PIECES = 16, 8192, 32  # most rows and fewest outputs for which to split, and most pieces


class DecodingLinear(nn.Linear):
    """nn.Linear with the parameters of another, faster for the few rows of decoding on a CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        has_bias = linear.bias is not None  # pyright: ignore[reportUnnecessaryComparison]
        super().__init__(linear.in_features, linear.out_features, has_bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """Return the product plus bias: (…, C) -> (…, P)."""
        return multiply_in_pieces(input, self.weight, self.bias)


@torch.no_grad()
def speed_up_cpu_decoding(model: GPT, rows: int) -> None:
    """Change an fp32 model on a CPU so that decoding `rows` texts at a time is faster; elsewhere do nothing.

    Results change only by rounding. For one or two texts, matrices with more outputs than inputs are stored transposed,
    which halves the time of their products. The model can't be trained afterwards.
    """
    if model.lm_head.weight.device.type != "cpu":
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, DecodingLinear(child))
                # For two texts the head is multiplied in pieces, which need the usual layout.
                transposed = rows == 1 or (rows <= TRANSPOSED_ROWS and child is not model.lm_head)
                if transposed and child.out_features > child.in_features:
                    child.weight.data = child.weight.data.T.contiguous().T


def multiply_in_pieces(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return F.linear(x, weight, bias), computed in pieces: (…, C), (P, C), (P,) -> (…, P).

    With few rows a CPU's fp32 product uses one thread or is far slower than memory; pieces avoid that. With 768
    channels and two cores: 1 row, 3,072 outputs: 0.38 ms instead of 0.73; 8 rows, 50,304 outputs: 9 ms instead of 24.
    """
    count = count_pieces(x.numel() // x.shape[-1], weight)
    if count == 1:
        return F.linear(x, weight, bias)
    parts = weight.unflatten(0, (count, -1)).transpose(1, 2)  # (count, C, P / count)
    rows = x.reshape(-1, x.shape[-1])
    y = (rows.expand(count, *rows.shape) @ parts).transpose(0, 1).flatten(1).view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def count_pieces(rows: int, weight: Tensor) -> int:
    """Return the number of pieces in which `rows` rows are multiplied with a (P, C) weight; a divisor of P."""
    if rows > FEW or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return 1
    several = PIECES if len(weight) >= WIDE else torch.get_num_threads() if rows == 2 else 1
    most = torch.get_num_threads() if rows == 1 else several
    return next(n for n in range(most, 0, -1) if len(weight) % n == 0)
