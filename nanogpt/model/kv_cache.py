"""KV cache: keys, values and convolution inputs of earlier positions, so that decoding computes one position per token.

B batch, T time, S time including the cache, K heads of keys and values, D head size, C channels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt.config import ModelConfig


class KVCache:
    """Preallocated keys and values of every layer: 2 * n_layer tensors of shape (B, K, capacity, D).

    Texts of different lengths are padded on the left: `padding`, (B,), counts the empty slots before each.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        capacity: int | None = None,
        padding: Tensor | None = None,
    ) -> None:
        self.capacity = min(capacity or config.block_size, config.block_size)
        shape = (batch, config.kv_heads, self.capacity, config.head_size)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.conv_inputs: dict[int, Tensor] = {}
        """The last inputs of each convolution, (B, taps, C), by its index."""
        self.padding = padding
        self.start = self.length = 0
        """Number of filled slots before this forward pass, and including it."""
        self.mask: Tensor | None = None
        """(B or 1, 1, T, S), True where a new position attends to a slot; None: all slots, or causal attention."""

    def advance(self, count: int) -> Tensor:
        """Reserve T = `count` slots, once per forward pass. Return their positions, (T,), or (B, T) with padding."""
        self.start, self.length = self.length, self.length + count
        device = self.keys[0].device
        new = torch.arange(self.start, self.length, device=device)
        if self.padding is None and (count == 1 or self.start == 0):
            self.mask = None
            return new
        slots = torch.arange(self.length, device=device)
        self.mask = (slots <= new[:, None])[None, None]
        if self.padding is None:
            return new
        # An empty slot attends to itself: a row of the mask without any True would give NaN.
        text = (slots >= self.padding[:, None])[:, None, None, :] | (slots == new[:, None])
        self.mask = self.mask & text
        return (new - self.padding[:, None]).clamp(min=0)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of the new slots, (B, K, T, D); return those of all slots so far, (B, K, S, D)."""
        self.keys[layer][:, :, self.start : self.length] = k
        self.values[layer][:, :, self.start : self.length] = v
        return self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]

    def prepend_previous(self, x: Tensor, count: int, conv_index: int) -> Tensor:
        """Return the last `count` inputs of this convolution, then the new ones: (B, T, C) -> (B, count + T, C)."""
        if self.padding is not None:  # empty slots count as zero
            new = torch.arange(self.start, self.length, device=x.device)
            x = x.masked_fill((new < self.padding[:, None])[:, :, None], 0.0)
        before = self.conv_inputs.get(conv_index)
        x = F.pad(x, (0, 0, count, 0)) if before is None else torch.cat([before, x], dim=1)
        self.conv_inputs[conv_index] = x[:, -count:].clone()
        return x
