"""Dropout without random state: a mask depends only on the sequence's key, the layer's index and the element.

A sequence therefore gets the same masks on any device, in any micro-batch, on any rank and after any restart. The bits
come from the finaliser of splitmix64 (Steele et al. 2014), four decisions of 16 bits from each 64-bit word. B batch.
"""

import torch
from torch import Tensor, nn

GOLDEN, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # odd constants, as int64


class Dropout(nn.Module):
    """Keyed dropout. `number_dropouts` gives each layer of a model its index."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.index = p, -1

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Apply dropout with `keys`, (B,) int64; None: no dropout. (B, ...) -> (B, ...)."""
        return dropout(x, self.p, keys, self.index)


def number_dropouts(model: nn.Module) -> None:
    """Number the Dropout layers of a model 0, 1, 2, … in the order in which they are registered."""
    for index, module in enumerate(module for module in model.modules() if isinstance(module, Dropout)):
        module.index = index


def dropout(x: Tensor, p: float, keys: Tensor | None, index: int) -> Tensor:
    """Zero elements of (B, ...) `x` with probability `p`, to 1/65536, and scale up the others. No keys, no dropout.

    `keys` is (B,) int64, one per sequence; `index` must differ between the calls of a forward pass.
    """
    if keys is None or p == 0:
        return x
    keep = random_bits(keys, index, x[0].numel()) >= min(round(p * 2**16), 2**16 - 1) - 2**15
    return torch.where(keep.view(x.shape), x * (1 / (1 - p)), 0.0)


def random_bits(keys: Tensor, index: int, count: int) -> Tensor:
    """Return (B, count) int16 values, uniform over the whole range. Arithmetic is modulo 2**64.

    The words are cut into 16-bit pieces by shifts: `view(torch.int16)` would give the same bits, but compiled for a CPU
    (torch 2.13) such a view of a computed tensor reads past its end for most sizes. Compiled, each element recomputes
    its word, which fuses with the use of the bits, so no word is written to memory.
    """
    compiling = torch.compiler.is_compiling()
    # `^ 0` keeps the product out of index expressions, which Triton computes in 32 bits (pytorch/pytorch#175966).
    elements = torch.arange(count if compiling else -(-count // 4), device=keys.device) ^ 0
    words = (elements >> 2 if compiling else elements) + 1
    x = splitmix64(splitmix64(keys + index)[:, None] + words * GOLDEN)
    if compiling:
        return (x >> 16 * (elements & 3)).to(torch.int16)
    return torch.stack([(x >> shift).to(torch.int16) for shift in (0, 16, 32, 48)], dim=2).flatten(1)[:, :count]


def splitmix64(x: Tensor) -> Tensor:
    """Apply the finaliser of splitmix64 to int64 values. The masks turn arithmetic shifts into logical ones."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * FIRST
    x = (x ^ ((x >> 27) & (2**37 - 1))) * SECOND
    return x ^ ((x >> 31) & (2**33 - 1))
