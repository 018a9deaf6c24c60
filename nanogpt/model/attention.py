"""Causal self-attention (Vaswani et al. 2017) through torch's fused kernels.

B batch, T time, S time including the cache, C channels, H heads, D head size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.config import ModelConfig
from nanogpt.model.dropout import dropout
from nanogpt.model.kv_cache import KVCache


class CausalSelfAttention(nn.Module):
    """Each position attends to itself and to those before it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # queries, keys, values
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, cache: KVCache | None = None, keys: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). With a cache of earlier positions, T must be 1 or the cache empty.

        `keys`, (B,), switch dropout on.
        """
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).split(C, dim=2)
        )
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, H, S, D)
        # One new position may see all S: only a square of positions needs the causal mask.
        if keys is None or self.dropout == 0:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=k.shape[2] == T)
        else:  # the fused kernels draw masks of their own
            y = dropout(causal_weights(q, k), self.dropout, keys, 3 * self.layer + 1) @ v
        y = y.transpose(1, 2).reshape(B, T, C)
        return dropout(self.c_proj(y), self.dropout, keys, 3 * self.layer + 2)


def causal_weights(q: Tensor, k: Tensor) -> Tensor:
    """(B, H, T, D) queries and keys -> (B, H, T, T), what each position takes from itself and those before it."""
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    return scores.masked_fill(hidden, -math.inf).softmax(dim=3)
