"""Causal self-attention (Vaswani et al. 2017) through torch's fused kernels.

B batch, T time, S time including the cache, C channels, H heads, K heads of keys and values, D head size.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nanogpt.config import ModelConfig
from nanogpt.estimates.memory import sequences_at_a_time
from nanogpt.model.context import ForwardContext
from nanogpt.model.dropout import Dropout
from nanogpt.model.layers import RMS_EPS, RMSNorm
from nanogpt.model.rotary import apply_rotation
from nanogpt.model.short_conv import build_conv

NO_CONTEXT = ForwardContext()


class CausalSelfAttention(nn.Module):
    """Multi-head causal attention, with grouped keys and values (GQA, Ainslie et al. 2023) if K < H."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_size = layer, config.head_size
        self.n_head, self.kv_heads = config.n_head, config.kv_heads
        self.widths = list(config.qkv_widths)
        self.c_attn = nn.Linear(config.n_embd, sum(self.widths), bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.conv = build_conv(config, "qkv", sum(self.widths), layer)
        self.q_norm, self.k_norm = (
            RMSNorm(config.head_size, RMS_EPS, config.norm_affine) if config.qk_norm else nn.Identity()
            for _ in range(2)
        )
        self.attn_dropout, self.resid_dropout = Dropout(config.dropout), Dropout(config.dropout)

    def forward(self, x: Tensor, context: ForwardContext = NO_CONTEXT) -> Tensor:
        """Return the output of attention: (B, T, C) -> (B, T, C)."""
        B, T, _ = x.shape
        rotation, cache, keys, mask = context.rotation, context.cache, context.keys, context.mask
        q, k, v = self.conv(self.c_attn(x), context).split(self.widths, dim=2)  # (B, T, C), (B, T, K D), (B, T, K D)
        q, k, v = (part.view(B, T, -1, self.head_size).transpose(1, 2) for part in (q, k, v))  # (B, H or K, T, D)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = apply_rotation(q, rotation), apply_rotation(k, rotation)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, K, S, D)
        dropout = keys if self.attn_dropout.p > 0 else None
        share_groups = context.fused_groups and mask is None and dropout is None
        if self.kv_heads < self.n_head and not share_groups:  # each key and value serves a group of query heads
            k, v = (part.repeat_interleave(self.n_head // self.kv_heads, dim=1) for part in (k, v))
        if dropout is None:
            # A single new position attends to all S positions, so the causal mask is only needed if S == T.
            causal = mask is None and k.shape[2] == T
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=share_groups)
        else:
            attend = self.attend_recomputed if context.recompute_weights else self.attend_with_dropout
            y = attend(q, k, v, dropout)
        y = y.transpose(1, 2).reshape(B, T, -1)  # (B, T, C)
        return self.resid_dropout(self.c_proj(y), keys)

    def attend_with_dropout(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor) -> Tensor:
        """Return attention with dropout, (B, H, T, D), without a fused kernel: those can't use our dropout masks."""
        return self.attn_dropout(compute_causal_weights(q, k), keys) @ v

    def attend_recomputed(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor) -> Tensor:
        """Return attention with dropout for a few sequences at a time, with weights recomputed in the backward pass."""
        count = sequences_at_a_time(self.n_head, q.shape[2])
        chunks = zip(*(part.split(count) for part in (q, k, v, keys)), strict=True)
        attend = partial(checkpoint, self.attend_with_dropout, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([attend(*chunk) for chunk in chunks])


def compute_causal_weights(q: Tensor, k: Tensor) -> Tensor:
    """Return the softmax attention weights, (B, H, T, T), of (B, H, T, D) queries and keys."""
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    return scores.masked_fill(hidden, -math.inf).softmax(dim=3)
