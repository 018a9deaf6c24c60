"""Text from a model: one token at a time over a cache of keys and values.

B batch, T time, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt.model.gpt import GPT
from nanogpt.model.kv_cache import KVCache


@dataclass(frozen=True)
class Draw:
    """How the next token is chosen from its logits."""

    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability (Holtzman et al. 2020)."""
    vocab_size: int | None = None
    """Only ids below this: a model may have more than its tokenizer."""


def filtered(logits: Tensor, draw: Draw) -> Tensor:
    """(B, V) logits -> (B, V) probabilities under the rules of `draw`."""
    logits = logits[:, : draw.vocab_size]
    if draw.temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    logits = (logits - logits.amax(1, keepdim=True)) / draw.temperature  # the largest is 0: never inf / inf
    if draw.top_k is not None and draw.top_k < logits.shape[1]:
        kept = logits.topk(draw.top_k, dim=1)
        logits = torch.full_like(logits, float("-inf")).scatter_(1, kept.indices, kept.values)
    probabilities = logits.softmax(dim=1)
    if draw.top_p < 1.0:
        ranked, order = probabilities.sort(dim=1, descending=True, stable=True)
        before = ranked.cumsum(dim=1) - ranked
        ranked = ranked.masked_fill(before >= draw.top_p, 0.0)  # the likeliest token always stays
        probabilities = torch.zeros_like(probabilities).scatter_(1, order, ranked)
    return probabilities / probabilities.sum(dim=1, keepdim=True)


@torch.inference_mode()
def generate(
    model: GPT, prompt: Sequence[int], max_new_tokens: int, draw: Draw, generator: torch.Generator
) -> Iterator[int]:
    """Yield the tokens that follow `prompt` (at least one id), each as soon as it is drawn.

    The model sees the last block_size tokens. Up to block_size each token costs one position; past it every position
    moves with each token, so the whole window is computed again, as it must be with learned absolute positions.
    """
    device = model.token_embedding.weight.device
    block_size = model.config.block_size
    cache = KVCache(model.config, 1, device, model.token_embedding.weight.dtype)
    seen = list(prompt)[-block_size:]
    ids = torch.tensor([seen], device=device)
    for _ in range(max_new_tokens):
        logits = model.next_logits(ids, cache)
        token = int(torch.multinomial(filtered(logits.float(), draw), 1, generator=generator))
        yield token
        seen = [*seen[-block_size + 1 :], token] if block_size > 1 else [token]
        if cache.length == cache.capacity:
            cache.length = 0
            ids = torch.tensor([seen], device=device)
        else:
            ids = torch.tensor([[token]], device=device)
