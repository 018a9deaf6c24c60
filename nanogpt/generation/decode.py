"""Autoregressive generation with a KV cache, for a batch of prompts.

B batch, T time, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt.config import Attention
from nanogpt.device import eval_kernel_order, prefer_kernels
from nanogpt.model.gpt import GPT
from nanogpt.model.kv_cache import KVCache


@dataclass(frozen=True)
class SamplingParams:
    """Rules that choose the next token from its logits, applied in this order."""

    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that the text contains, multiplies negative ones (Keskar et al. 2019)."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Only tokens at least this share as probable as the likeliest (Nguyen et al. 2024)."""
    vocab_size: int | None = None
    """Only ids below this: a model may have more ids than its tokenizer."""


def next_token_probs(logits: Tensor, params: SamplingParams, seen: Tensor | None = None) -> Tensor:
    """Return (B, V) probabilities of (B, V) logits under `params`. `seen`, (B, V), marks the tokens of each text."""
    logits = logits[:, : params.vocab_size]
    if seen is not None and params.repetition_penalty != 1.0:
        penalised = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
        logits = torch.where(seen[:, : params.vocab_size], penalised, logits)
    if params.temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    logits = (logits - logits.amax(1, keepdim=True)) / params.temperature  # the largest is 0, which avoids inf / inf
    if params.top_k is not None and params.top_k < logits.shape[1]:
        kept = logits.topk(params.top_k, dim=1)
        logits = torch.full_like(logits, float("-inf")).scatter_(1, kept.indices, kept.values)
    probabilities = logits.softmax(dim=1)
    if params.top_p < 1.0:
        ranked, order = probabilities.sort(dim=1, descending=True, stable=True)
        before = ranked.cumsum(dim=1) - ranked
        ranked = ranked.masked_fill(before >= params.top_p, 0.0)  # the likeliest token always stays
        probabilities = torch.zeros_like(probabilities).scatter_(1, order, ranked)
    if params.min_p > 0.0:
        probabilities = probabilities.where(probabilities >= params.min_p * probabilities.amax(1, keepdim=True), 0.0)
    return probabilities / probabilities.sum(dim=1, keepdim=True)


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    params: SamplingParams,
    generators: Sequence[torch.Generator],
    attention: Attention = "auto",
) -> Iterator[list[int]]:
    """Yield the next token of each of B texts, as soon as it is sampled. Prompts have at least one id.

    Each text has its own generator, so it doesn't depend on the others. The model sees the last block_size tokens. Up
    to block_size a token costs one position. Beyond, every position shifts with each token, so the whole window is
    computed again, as learned absolute positions require.
    """
    texts = [list(prompt) for prompt in prompts]
    length = max(map(len, texts)) + max_new_tokens
    seen = mark_seen_tokens(model, texts) if params.repetition_penalty != 1.0 else None
    cache, ids = start_cache(model, texts, length)
    order = eval_kernel_order(attention, model.lm_head.weight.device)
    for _ in range(max_new_tokens):
        with prefer_kernels(order):
            logits = model.next_logits(ids, cache).float()
        probabilities = next_token_probs(logits, params, seen)
        rows = zip(probabilities, generators, strict=True)
        drawn = torch.stack([torch.multinomial(row, 1, generator=generator) for row, generator in rows])  # (B, 1)
        tokens = [int(token) for token in drawn[:, 0].tolist()]
        yield tokens
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        if seen is not None:
            seen.scatter_(1, drawn, True)
        if cache.length < cache.capacity:
            ids = drawn
        else:
            cache, ids = start_cache(model, texts, length)


def start_cache(model: GPT, texts: Sequence[Sequence[int]], length: int) -> tuple[KVCache, Tensor]:
    """Return a cache for texts that grow to `length`, and (B, T) ids of their windows, padded on the left."""
    weight = model.lm_head.weight
    windows = [text[-model.config.block_size :] for text in texts]
    longest = max(map(len, windows))
    missing = [longest - len(window) for window in windows]
    ids = [[0] * count + list(window) for count, window in zip(missing, windows, strict=True)]
    padding = torch.tensor(missing, device=weight.device) if any(missing) else None
    cache = KVCache(model.config, len(texts), weight.device, weight.dtype, capacity=length, padding=padding)
    return cache, torch.tensor(ids, device=weight.device)


def mark_seen_tokens(model: GPT, texts: Sequence[Sequence[int]]) -> Tensor:
    """Return (B, V), True where a text contains a token."""
    device = model.lm_head.weight.device
    seen = torch.zeros(len(texts), model.config.padded_vocab_size, dtype=torch.bool, device=device)
    for row, text in zip(seen, texts, strict=True):
        row[torch.tensor(text, device=device)] = True
    return seen[:, : model.config.vocab_size]
