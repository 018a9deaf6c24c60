"""GPT-2 (Radford et al. 2019): embeddings, pre-norm blocks, a head tied to the token embedding; and its modern forms.

Parameter names are those of GPT-2 and nanoGPT (`transformer.h.0.attn.c_attn.weight`, …); linear weights are (out, in).
B batch, T time, C channels, V vocabulary, P vocabulary padded to a multiple.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.config import ModelConfig
from nanogpt.model.attention import CausalSelfAttention
from nanogpt.model.branches import Branches
from nanogpt.model.dropout import dropout
from nanogpt.model.kv_cache import KVCache
from nanogpt.model.layers import MLP, linear, norm
from nanogpt.model.loss import linear_cross_entropy
from nanogpt.model.rotary import Rotation, rotation_of


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = norm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = norm(config)
        self.mlp = MLP(config, layer)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), rotation, mask, cache, keys)
        return x + self.mlp(self.ln_2(x), keys)


class GPT(nn.Module):
    """Next-token model. Called with targets it returns their summed loss, else the logits."""

    pad_mask: Tensor | None

    def __init__(self, config: ModelConfig, seed: int | None = 0) -> None:
        """Random weights that depend on `config` and `seed` alone, whatever the device; without a seed they are
        whatever was in the memory, for those who put others there.
        """
        super().__init__()
        self.config = config
        assert config.vocab_size is not None
        rows = config.padded_vocab_size
        with torch.device("meta"):  # no module need initialise itself
            self.transformer = nn.ModuleDict({"wte": nn.Embedding(rows, config.n_embd)})
            if config.position == "learned":
                self.transformer["wpe"] = nn.Embedding(config.block_size, config.n_embd)
            self.transformer["h"] = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
            self.transformer["ln_f"] = norm(config)
            self.lm_head = nn.Linear(config.n_embd, rows, bias=False)
        self.to_empty(device="cpu")
        if config.tied_head:
            self.lm_head.weight = self.token_embedding.weight
        # Added to the logits as the head's bias: padded ids get probability zero and no gradient, at no cost.
        pad = torch.zeros(rows).masked_fill(torch.arange(rows) >= config.vocab_size, -math.inf)
        self.register_buffer("pad_mask", pad if rows > config.vocab_size else None, persistent=False)
        if seed is not None:
            initialize(self, seed)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The token embedding, (P, C), also the head's weight where the head is tied."""
        module = self.transformer["wte"]
        assert isinstance(module, nn.Embedding)
        return module

    def features(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        keys: Tensor | None = None,
        branches: Branches | None = None,
    ) -> Tensor:
        """(B, T) ids -> (B, T, C) of the last layer, normalised. Positions follow those in the cache, or are the
        branches'.
        """
        if cache is not None:
            positions, mask = cache.advance(ids.shape[1]), cache.mask
        else:
            positions, mask = branches or (torch.arange(ids.shape[1], device=ids.device), None)
        x, rotation = self.transformer["wte"](ids), None
        if self.config.position == "learned":
            x = x + self.transformer["wpe"](positions)
        else:
            rotation = rotation_of(positions, self.config.head_size, self.config.rope_base)
        x = dropout(x, self.config.dropout, keys, 0)
        for block in self.transformer["h"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = block(x, rotation, mask, cache, keys)
        return self.transformer["ln_f"](x)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        cache: KVCache | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """(B, T) ids -> (B, T, P) logits, -inf on padded ids; with (B, T) targets -> their summed loss, in nats.

        A sum, not a mean: sums over micro-batches and ranks divided by the count of targets give the exact mean.
        With `keys`, one (int64) of each sequence, there is dropout; without them there is none, in any mode.
        """
        x = self.features(ids, cache, keys)
        if targets is None:
            return F.linear(x, self.lm_head.weight, self.pad_mask)
        return linear_cross_entropy(x.flatten(0, 1), self.lm_head.weight, self.pad_mask, targets.flatten())

    def next_logits(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, T) ids -> (B, V) logits of the token after the last, padded ids cut off."""
        last = self.features(ids, cache)[:, -1]
        return linear(last, self.lm_head.weight)[:, : self.config.vocab_size]


@torch.no_grad()
def initialize(model: GPT, seed: int) -> None:
    """nanoGPT's initialisation: normal(0, 0.02) for matrices, 0.02 / sqrt(2 * n_layer) for those that write to the
    residual stream (GPT-2 paper, section 2.3), zero biases, unit norms.
    """
    generator = torch.Generator().manual_seed(seed)
    residual = 0.02 / math.sqrt(2 * model.config.n_layer)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0.0, residual if name.endswith("c_proj.weight") else 0.02, generator=generator)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)
