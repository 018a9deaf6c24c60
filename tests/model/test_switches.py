"""The switches of the modern forms: each against a plain formula, all of them together in every way of computing."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt.config import ModelConfig
from nanogpt.model.branches import build_branches
from nanogpt.model.context import ForwardContext
from nanogpt.model.gpt import GPT
from nanogpt.model.kv_cache import KVCache
from nanogpt.model.short_conv import ShortConv
from nanogpt.training.state import compile_model
from tests.model.test_gpt import randomize, small

MODERN: dict[str, Any] = {
    "norm": "rmsnorm",
    "position": "rotary",
    "activation": "swiglu",
    "qk_norm": True,
    "bias": False,
    "tie_weights": False,
    "n_kv_head": 1,
    "vocab_multiple": 64,
}
SWITCHES: list[dict[str, Any]] = [
    {"norm_affine": False},
    {"logit_softcap": 2.0},
    {"conv": ["attention"]},
    {"conv": ["qkv"], "conv_history": 1},
    {"conv": ["mlp"], "conv_history": 5},
    {"norm_affine": False, "logit_softcap": 2.0, "conv": ["attention", "qkv", "mlp"]},
]
FORMS = [base | switch for switch in SWITCHES for base in ({}, MODERN)]


def built(form: dict[str, Any]) -> GPT:
    torch.manual_seed(0)
    model = GPT(small(**form)).eval()
    randomize(model)
    return model


@pytest.fixture(params=FORMS, ids=str)
def model(request: pytest.FixtureRequest) -> GPT:
    return built(request.param)


def test_a_convolution_is_torchs(taps: int = 3) -> None:
    """A depthwise causal conv1d whose newest tap is 1."""
    torch.manual_seed(0)
    conv, x = ShortConv(taps, 8, 0), torch.randn(2, 11, 8)
    randomize(conv)
    kernel = torch.cat([conv.weight.flip(0), torch.ones(1, 8)]).T[:, None]  # (C, 1, K + 1)
    expected = F.conv1d(F.pad(x.transpose(1, 2), (taps, 0)), kernel, groups=8).transpose(1, 2)
    torch.testing.assert_close(conv(x, ForwardContext()), expected)


@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_of_capped_logits_is_the_plain_one(padded: bool) -> None:
    """Value and gradients by autograd, without chunks; padded ids get neither."""
    model = built({"logit_softcap": 2.0, "tie_weights": False, "vocab_multiple": 64 if padded else 1})
    ids, targets = torch.randint(50, (3, 12)), torch.randint(50, (3, 12))
    plain = copy.deepcopy(model)
    logits = 2.0 * torch.tanh(F.linear(plain.features(ids), plain.lm_head.weight)[..., :50] / 2.0)
    torch.testing.assert_close(model(ids)[..., :50], logits)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    with torch.no_grad():
        torch.testing.assert_close(model(ids, targets), expected)
    loss = model(ids, targets)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_norms_without_gains_are_those_with_gains_of_one() -> None:
    for norm in ("layernorm", "rmsnorm"):
        bare = built({"norm": norm, "qk_norm": True, "norm_affine": False, "bias": False})
        full = GPT(small(norm=norm, qk_norm=True, bias=False)).eval()  # whose gains begin at one
        missing = full.load_state_dict(bare.state_dict(), strict=False).missing_keys
        assert len(missing) == 2 * (2 + 2) + 1 and all("ln_" in name or "_norm" in name for name in missing)
        ids = torch.randint(50, (2, 12))
        torch.testing.assert_close(bare(ids), full(ids))


def test_each_position_sees_only_its_past(model: GPT) -> None:
    ids = torch.randint(50, (1, 12))
    before = model(ids)
    for t in range(12):
        changed = ids.clone()
        changed[0, t:] = (changed[0, t:] + 1) % 50
        torch.testing.assert_close(model(changed)[0, :t], before[0, :t])
        assert not torch.equal(model(changed)[0, t, :50], before[0, t, :50])


def test_decoding_over_the_cache(model: GPT) -> None:
    """One, and several, positions at a time, from texts of unlike length side by side."""
    texts = [torch.randint(50, (n,)).tolist() for n in (9, 4)]
    padding = torch.tensor([9 - len(text) for text in texts])
    ids = torch.tensor([[7] * (9 - len(text)) + text for text in texts])
    cache = KVCache(model.config, 2, ids.device, torch.float32, padding=padding)
    for new in (ids[:, :2], ids[:, 2:6], *ids[:, 6:].split(1, dim=1)):
        found = model.next_logits(new, cache)
    for row, text in zip(found, texts, strict=True):
        torch.testing.assert_close(row, model(torch.tensor([text]))[0, -1, :50], rtol=1e-3, atol=1e-4)


def test_branches_are_computed_as_if_alone(model: GPT) -> None:
    """A text of 5, then branches of 3 and 4 that go on from it."""
    text, branches = torch.randint(50, (5,)), [torch.randint(50, (n,)) for n in (3, 4)]
    positions = torch.tensor([[*range(5), *range(5, 8), *range(5, 9)]])
    layout = build_branches(positions, torch.tensor([[0] * 5 + [1] * 3 + [2] * 4]))
    x = model.features(torch.cat([text, *branches])[None], branches=layout)[0]
    for branch, found in zip(branches, x[5:].split([3, 4]), strict=True):
        alone = model.features(torch.cat([text, branch])[None])[0, 5:]
        torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-4)


def test_dropout_depends_on_the_key_alone() -> None:
    model = built(FORMS[-1] | {"dropout": 0.3})
    ids, targets, keys = torch.randint(50, (4, 12)), torch.randint(50, (4, 12)), torch.arange(4)
    whole = model(ids, targets, keys=keys)
    parts = sum(model(ids[i : i + 1], targets[i : i + 1], keys=keys[i : i + 1]) for i in range(4))
    torch.testing.assert_close(whole, parts)
    assert not torch.allclose(whole, model(ids, targets))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS[-2:], ids=["gpt2", "modern"])
def test_compiled_it_is_the_same(form: dict[str, Any]) -> None:
    model, ids, targets = built(form), torch.randint(50, (3, 12)), torch.randint(50, (3, 12))
    results: list[list[Tensor]] = []
    for one in (model, compile_model(model)):
        model.zero_grad()
        loss: Any = one(ids, targets)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for eager, faster in zip(*results, strict=True):
        torch.testing.assert_close(faster, eager, rtol=1e-3, atol=1e-4)


def test_fan_in_initialisation() -> None:
    """Deviations by the number of inputs; what writes to the stream, the head and convolutions begin at zero."""
    form = MODERN | {"n_embd": 96, "n_head": 4, "init": "fan_in", "zero_init": True, "conv": ["mlp", "qkv"]}
    for name, weight in GPT(small(**form)).requires_grad_(False).named_parameters():
        if name.endswith("c_proj.weight") or "conv" in name or name == "lm_head.weight":
            assert not weight.any(), name
        elif name == "transformer.wte.weight":
            assert abs(float(weight.std()) - 1) < 0.05
        elif weight.dim() == 2:
            std = 0.5 / math.sqrt(weight.shape[1])
            assert abs(float(weight.std()) / std - 1) < 0.05 and float(weight.abs().max()) <= std * math.sqrt(3), name
        else:
            assert torch.equal(weight, torch.ones_like(weight))
    for changes in ({"tie_weights": True}, {"zero_init": False}):  # then every matrix is something
        weights = dict(GPT(small(**(form | changes))).named_parameters())
        assert weights["lm_head.weight" if "zero_init" in changes else "transformer.wte.weight"].any()


def test_zero_initialised_blocks_change_nothing() -> None:
    model = GPT(small(**MODERN, zero_init=True, norm_affine=False))
    ids = torch.randint(50, (2, 12))
    expected = F.rms_norm(model.token_embedding(ids), (24,), eps=1e-6)
    torch.testing.assert_close(model.features(ids), expected)
    loss = model(ids, ids)
    torch.testing.assert_close(loss / ids.numel(), torch.tensor(math.log(50)))


def test_gpt2_begins_with_the_numbers_it_always_did() -> None:
    """One generator, the parameters in order; what the modern forms brought draws nothing from it."""
    config = small(vocab_multiple=64)
    generator = torch.Generator().manual_seed(5)
    for name, weight in GPT(config, seed=5).named_parameters():
        if weight.dim() == 2:
            std = 0.02 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 0.02
            assert torch.equal(weight, torch.empty_like(weight).normal_(0.0, std, generator=generator)), name
        else:
            assert torch.equal(weight, torch.full_like(weight, float(name.endswith("weight"))))


def test_unlike_places() -> None:
    with pytest.raises(ValueError, match="names mlp more than once"):
        ModelConfig.model_validate({"conv": ["mlp", "qkv", "mlp"]})
