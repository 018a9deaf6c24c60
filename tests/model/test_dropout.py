"""Dropout masks are functions of key, layer and element: right on average, independent, the same in any batch."""

import torch
from torch.nn import functional as F

from nanogpt.config import ModelConfig
from nanogpt.model.attention import compute_causal_weights
from nanogpt.model.dropout import Dropout, dropout, random_bits
from nanogpt.model.gpt import GPT

KEYS = torch.randint(-(2**62), 2**62, (400,), generator=torch.Generator().manual_seed(1))


def test_splitmix64() -> None:
    """Against the reference in Python's integers (Steele et al. 2014; Vigna's constants)."""

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    key, place = 123_456_789_012_345_678, 5
    base = mixed(key + place)
    words = [mixed((base + i * 0x9E3779B97F4A7C15) % 2**64) for i in (1, 2, 3)]
    expected = [(word >> 16 * part) % 2**16 for word in words for part in range(4)]
    found = random_bits(torch.tensor([key]), place, 11)[0].tolist()
    assert [value % 2**16 for value in found] == expected[:11]


def test_share_scale_and_gradient() -> None:
    x = torch.ones(400, 50, 20, requires_grad=True)
    y = dropout(x, 0.3, KEYS, 2)
    share = (y == 0).float().mean()
    assert abs(share - 0.3) < 5 * (0.21 / y.numel()) ** 0.5
    assert torch.allclose(y[y != 0], torch.tensor(1 / 0.7))
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach())


def test_sequences_places_and_elements_are_independent() -> None:
    bits = (random_bits(KEYS, 0, 512) >= 0).double() - 0.5
    other = (random_bits(KEYS, 1, 512) >= 0).double() - 0.5
    for a, b in ((bits[:-1], bits[1:]), (bits[:, :-1], bits[:, 1:]), (bits[:, :-4], bits[:, 4:]), (bits, other)):
        correlation = 4 * float((a * b).mean())
        assert abs(correlation) < 5 / a.numel() ** 0.5
    per_place = bits.mean(0) * 2 * len(KEYS) ** 0.5
    assert 0.8 < float(per_place.std()) < 1.2


def test_a_sequence_meets_the_same_masks_in_any_batch() -> None:
    x = torch.randn(400, 6, 8)
    whole = dropout(x, 0.5, KEYS, 1)
    assert torch.equal(whole[37:41], dropout(x[37:41], 0.5, KEYS[37:41], 1))
    assert torch.equal(dropout(x, 0.0, KEYS, 1), x) and dropout(x, 0.5, None, 1) is x
    assert torch.equal(dropout(x, 0.99999999, KEYS, 1) != 0, random_bits(KEYS, 1, 48).view(400, 6, 8) == 2**15 - 1)


def test_a_model_with_keys_in_any_batch() -> None:
    """Losses per sequence, alone and together; without keys there is no dropout in any mode."""
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=11, dropout=0.2), seed=3).train()
    ids = torch.randint(0, 11, (5, 9), generator=torch.Generator().manual_seed(2))
    x, y = ids[:, :-1], ids[:, 1:]
    together = model(x, y, keys=KEYS[:5])
    alone = sum(model(x[i : i + 1], y[i : i + 1], keys=KEYS[i : i + 1]) for i in range(5))
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together, model(x, y))
    assert torch.equal(model(x, y), model.eval()(x, y))


def test_places_are_those_of_earlier_runs() -> None:
    """0 after the embedding; in layer l 3l + 1 on attention weights, 3l + 2 after attention, 3l + 3 after the MLP."""
    model = GPT(ModelConfig(n_layer=3, n_head=2, n_embd=16, block_size=8, vocab_size=11, dropout=0.2))
    found = {name: module.index for name, module in model.named_modules() if isinstance(module, Dropout)}
    expected = {"transformer.drop": 0}
    for layer in range(3):
        for k, name in enumerate(("attn.attn_dropout", "attn.resid_dropout", "mlp.dropout"), 1):
            expected[f"transformer.h.{layer}.{name}"] = 3 * layer + k
    assert found == expected


def test_attention_weights_are_those_of_the_fused_kernel() -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 5).unbind(0)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(compute_causal_weights(q, k) @ v, expected, atol=1e-6)
