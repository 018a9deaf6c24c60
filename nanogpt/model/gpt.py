"""GPT-2 (Radford et al. 2019) and its modern variants: embeddings, pre-norm blocks and an output head.

Parameter names are those of GPT-2 and nanoGPT (`transformer.h.0.attn.c_attn.weight`, …); linear weights are (out, in).
B batch, T time, C channels, V vocabulary, P vocabulary padded to a multiple.
"""

import math
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanogpt.config import ModelConfig
from nanogpt.model.attention import CausalSelfAttention
from nanogpt.model.branches import Branches
from nanogpt.model.context import ForwardContext
from nanogpt.model.dropout import Dropout, number_dropouts
from nanogpt.model.init import initialize
from nanogpt.model.kv_cache import KVCache
from nanogpt.model.layers import MLP, build_norm
from nanogpt.model.loss import Loss, apply_softcap, compute_logits, linear_cross_entropy
from nanogpt.model.rotary import compute_rotation
from nanogpt.model.short_conv import build_conv


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), with an optional short convolution after each norm."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = build_norm(config)
        self.conv_1 = build_conv(config, "attention", config.n_embd, layer)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = build_norm(config)
        self.conv_2 = build_conv(config, "mlp", config.n_embd, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """Return the residual stream after this block: (B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.conv_1(self.ln_1(x), context), context)
        return x + self.mlp(self.conv_2(self.ln_2(x), context), context.keys)


class GPT(nn.Module):
    """Next-token model. Returns logits, or the summed loss if called with targets."""

    pad_mask: Tensor | None

    def __init__(self, config: ModelConfig, seed: int | None = 0, width_multiplier: float = 1.0) -> None:
        """Build the model on the CPU. Its weights depend only on the arguments (see `initialize`); with seed=None they
        are uninitialised, for callers that load others.
        """
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        """Recompute each block's activations in the backward pass. Keyed dropout makes them bitwise equal."""
        self.recompute_attention_weights = False
        """Recompute attention weights with dropout, (B, H, T, T), in the backward pass."""
        self.fused_groups = False
        """The attention kernel shares keys and values among a group of heads; else they are repeated for each head."""
        self.compiled_loss: Loss | None = None
        """Replaces `linear_cross_entropy` in a compiled model."""
        assert config.vocab_size is not None
        rows = config.padded_vocab_size
        with torch.device("meta"):  # modules do not initialise their weights
            self.transformer = nn.ModuleDict({"wte": nn.Embedding(rows, config.n_embd)})
            if not config.is_rotary:
                self.transformer["wpe"] = nn.Embedding(config.block_size, config.n_embd)
            self.transformer["drop"] = Dropout(config.dropout)
            self.transformer["h"] = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
            self.transformer["ln_f"] = build_norm(config)
            self.lm_head = nn.Linear(config.n_embd, rows, bias=False)
        self.to_empty(device="cpu")
        number_dropouts(self)
        if config.tie_weights:
            self.lm_head.weight = self.token_embedding.weight
        # The head's bias: padded ids get probability zero and no gradient.
        pad = torch.zeros(rows).masked_fill(torch.arange(rows) >= config.vocab_size, -math.inf)
        self.register_buffer("pad_mask", pad if rows > config.vocab_size else None, persistent=False)
        if seed is not None:
            initialize(self, config, seed, width_multiplier)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The token embedding, (P, C); a tied head shares its weight."""
        module = self.transformer["wte"]
        assert isinstance(module, nn.Embedding)
        return module

    @property
    def blocks(self) -> Iterator[Block]:
        """The blocks, first to last."""
        modules = self.transformer["h"]
        assert isinstance(modules, nn.ModuleList)
        return iter(cast(Iterable[Block], modules))

    def features(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        keys: Tensor | None = None,
        branches: Branches | None = None,
    ) -> Tensor:
        """Return the normalised output of the last block: (B, T) ids -> (B, T, C).

        Positions continue those in the cache, or are those of `branches`.
        """
        if cache is not None:
            positions = cache.advance(ids.shape[1])
        else:
            positions = branches.positions if branches else torch.arange(ids.shape[1], device=ids.device)
        x, rotation = self.transformer["wte"](ids), None
        if self.config.is_rotary:
            rotation = compute_rotation(positions, self.config.head_size, self.config.rope_base)
        else:
            x = self.add_positions(x, positions)
        x = self.transformer["drop"](x, keys)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        recompute_weights = self.recompute_attention_weights and not recompute
        context = ForwardContext(rotation, cache, branches, keys, recompute_weights, self.fused_groups)
        for block in self.blocks:
            x = run_checkpointed(block, x, context) if recompute else block(x, context)
        return self.transformer["ln_f"](x)

    def add_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        """Add the embeddings of (T,) or (B, T) positions to (B, T, C)."""
        return x + self.transformer["wpe"](positions)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        cache: KVCache | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Return logits, (B, T) ids -> (B, T, P), -inf on padded ids; with (B, T) targets the summed loss, (), in nats.

        Sums over micro-batches and ranks, divided by the number of targets, give the exact mean. Dropout needs `keys`,
        (B,) int64: without them there is none, even in training mode.
        """
        x = self.features(ids, cache, keys)
        if targets is None:
            return self.logits(x)
        loss, head = self.compiled_loss or linear_cross_entropy, self.lm_head.weight
        return loss(x.flatten(0, 1), head, self.pad_mask, targets.flatten(), self.config.logit_softcap)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of features, -inf on padded ids: (…, C) -> (…, P)."""
        return compute_logits(x, self.lm_head.weight, self.pad_mask, self.config.logit_softcap)

    def next_logits(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the logits of the next token, without padded ids: (B, T) ids -> (B, V)."""
        last = self.features(ids, cache)[:, -1]
        logits = self.lm_head(last)[:, : self.config.vocab_size]
        return logits if self.config.logit_softcap is None else apply_softcap(logits, self.config.logit_softcap)


def run_checkpointed(block: nn.Module, x: Tensor, context: ForwardContext) -> Tensor:
    """Run a block that saves only its inputs for the backward pass."""
    result = checkpoint(block, x, context, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(result, Tensor)
    return result
