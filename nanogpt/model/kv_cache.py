"""Keys and values of the positions already seen, so that decoding computes one position at a time.

B batch, T time, K heads of keys and values, D head size.
"""

import torch
from torch import Tensor

from nanogpt.config import ModelConfig


class KVCache:
    """Preallocated for every layer: 2 * n_layer tensors of shape (B, K, block_size, D)."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (batch, config.kv_heads, config.block_size, config.head_size)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.capacity = config.block_size
        self.length = 0
        """Positions held; the model advances it once per forward pass."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, K, T, D) of the new positions; returns all so far, (B, K, length + T, D)."""
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]
