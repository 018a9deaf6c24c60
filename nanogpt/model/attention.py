"""Causal self-attention (Vaswani et al. 2017) through torch's fused kernels.

B batch, T time, S time including the cache, C channels, H heads, K heads of keys and values, D head size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.config import ModelConfig
from nanogpt.model.context import ForwardContext
from nanogpt.model.dropout import dropout
from nanogpt.model.layers import RMS_EPS, Linear, RMSNorm
from nanogpt.model.rotary import apply_rotation
from nanogpt.model.short_conv import build_conv

NO_CONTEXT = ForwardContext()


class CausalSelfAttention(nn.Module):
    """Each position attends to itself and to those before it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout, self.head_size = layer, config.dropout, config.head_size
        self.n_head, self.kv_heads = config.n_head, config.kv_heads
        self.widths = list(config.qkv_widths)
        self.c_attn = Linear(config.n_embd, sum(self.widths), bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.conv = build_conv(config, "qkv", sum(self.widths), layer)
        self.q_norm, self.k_norm = (
            RMSNorm(config.head_size, RMS_EPS, config.norm_affine) if config.qk_norm else nn.Identity()
            for _ in range(2)
        )

    def forward(self, x: Tensor, context: ForwardContext = NO_CONTEXT) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, _ = x.shape
        rotation, cache, keys, mask = context.rotation, context.cache, context.keys, context.mask
        qkv = self.conv(self.c_attn(x), context)  # (B, T, C + 2 K D)
        q, k, v = (  # (B, H, T, D), (B, K, T, D), (B, K, T, D)
            part.view(B, T, -1, self.head_size).transpose(1, 2) for part in qkv.split(self.widths, dim=2)
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = apply_rotation(q, rotation), apply_rotation(k, rotation)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, K, S, D)
        if self.kv_heads < self.n_head:  # each serves a group of neighbouring queries
            k, v = (part.repeat_interleave(self.n_head // self.kv_heads, dim=1) for part in (k, v))
        if keys is None or self.dropout == 0:
            # One new position may see all S: only a square of positions needs the causal mask.
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and k.shape[2] == T)
        else:  # the fused kernels draw masks of their own
            y = dropout(compute_causal_weights(q, k), self.dropout, keys, 3 * self.layer + 1) @ v
        y = y.transpose(1, 2).reshape(B, T, -1)  # (B, T, C)
        return dropout(self.c_proj(y), self.dropout, keys, 3 * self.layer + 2)


def compute_causal_weights(q: Tensor, k: Tensor) -> Tensor:
    """(B, H, T, D) queries and keys -> (B, H, T, T), what each position takes from itself and those before it."""
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    return scores.masked_fill(hidden, -math.inf).softmax(dim=3)
