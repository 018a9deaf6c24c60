"""Our GPT-2 against the one in transformers, and the properties that a formula can check."""

import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from nanogpt.config import ModelConfig
from nanogpt.model.gpt import GPT


def small(**changes: object) -> ModelConfig:
    values = {"n_layer": 2, "n_head": 3, "n_embd": 24, "block_size": 12, "vocab_size": 50}
    return ModelConfig.model_validate(values | changes)


def randomize(model: torch.nn.Module) -> None:
    """Move weights far from their initial values, so that no bias or gain hides a mistake."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_equal_to_transformers(activation: str) -> None:
    """Logits, loss and every gradient, with random weights copied by name (its Conv1D weights are transposed)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ours = GPT(small(activation=activation))
    randomize(ours)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=50,
            n_positions=12,
            n_embd=24,
            n_layer=2,
            n_head=3,
            activation_function={"gelu": "gelu", "gelu_tanh": "gelu_new"}[activation],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    flipped = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    named = dict(ours.named_parameters())
    theirs_named = dict(theirs.named_parameters())
    assert named.keys() == theirs_named.keys()
    with torch.no_grad():
        for name, parameter in theirs_named.items():
            parameter.copy_(named[name].T if name.endswith(flipped) else named[name])
    ids, targets = torch.randint(50, (3, 12)), torch.randint(50, (3, 12))
    assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-4)
    loss = ours(ids, targets)
    reference = F.cross_entropy(theirs(ids).logits.view(-1, 50), targets.view(-1), reduction="sum")
    assert torch.allclose(loss, reference, rtol=1e-5)
    loss.backward()
    reference.backward()
    for name, parameter in named.items():
        gradient = theirs_named[name].grad
        gradient = gradient.T if name.endswith(flipped) else gradient
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-4), name


def test_names_are_nanogpts() -> None:
    """The state dict of nanoGPT's GPT(n_layer=1), bias on; without bias the `.bias` names are gone."""
    block = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    weights = ["transformer.wte.weight", "transformer.wpe.weight"]
    weights += [f"transformer.h.0.{name}.{kind}" for name in block for kind in ("weight", "bias")]
    weights += ["transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight"]
    assert list(GPT(small(n_layer=1)).state_dict()) == weights
    without = [name for name in weights if not name.endswith("bias")]
    assert list(GPT(small(n_layer=1, bias=False)).state_dict()) == without


def test_each_position_sees_only_its_past() -> None:
    model = GPT(small()).eval()
    ids = torch.randint(50, (1, 12))
    before = model(ids)
    for t in range(12):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % 50
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


def test_padded_ids_are_never_predicted_nor_trained() -> None:
    torch.manual_seed(0)
    plain, padded = GPT(small()), GPT(small(vocab_multiple=64))
    randomize(plain)
    named = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in padded.named_parameters():
            parameter.zero_()[tuple(slice(0, n) for n in named[name].shape)] = named[name]
        padded.transformer["wte"].weight[50:] = 100.0
    ids, targets = torch.randint(50, (2, 12)), torch.randint(50, (2, 12))
    assert padded(ids).shape[-1] == 64 and (padded(ids)[..., 50:] == -math.inf).all()
    loss = padded(ids, targets)
    assert torch.allclose(loss, plain(ids, targets))
    loss.backward()
    assert (padded.transformer["wte"].weight.grad[50:] == 0).all()
    assert padded.next_logits(ids).shape == (2, 50)


def test_ignored_targets_don_t_count() -> None:
    model = GPT(small())
    ids, targets = torch.randint(50, (2, 12)), torch.randint(50, (2, 12))
    half = targets.clone()
    half[:, 6:] = -1
    logits = model(ids)
    expected = F.cross_entropy(logits[:, :6].reshape(-1, 50), targets[:, :6].reshape(-1), reduction="sum")
    assert torch.allclose(model(ids, half), expected)


def test_initialisation() -> None:
    """normal(0, 0.02); 0.02 / sqrt(2 L) for what writes to the residual stream; loss near ln V at the start."""
    config = ModelConfig(n_layer=8, n_head=4, n_embd=256, block_size=64, vocab_size=1000)
    model = GPT(config, seed=3)
    for name, parameter in model.named_parameters():
        parameter = parameter.detach()
        if parameter.dim() == 2:
            expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert abs(float(parameter.std()) / expected - 1) < 0.05, name
            assert abs(float(parameter.mean())) < expected / 10, name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name
    ids = torch.randint(1000, (4, 64))
    loss = model(ids, torch.randint(1000, (4, 64))).item() / 256
    assert abs(loss - math.log(1000)) < 0.2


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    first = GPT(small(), seed=7).state_dict()
    torch.manual_seed(2)
    again, other = GPT(small(), seed=7).state_dict(), GPT(small(), seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch's, of RMS norms under autocast
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("modern", [False, True])
def test_recomputing_changes_no_bit(precision: torch.dtype, modern: bool) -> None:
    """Loss and gradients, with dropout, whose masks must be drawn again."""
    switches = {"norm": "rmsnorm", "position": "rotary", "activation": "swiglu", "qk_norm": True} if modern else {}
    config = ModelConfig.model_validate(
        {"n_layer": 3, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": 50, "dropout": 0.2, **switches}
    )
    ids = torch.randint(50, (4, 16), generator=torch.Generator().manual_seed(1))
    found: list[list[torch.Tensor]] = []
    for recompute in (False, True):
        model = GPT(config)
        model.activation_checkpointing = recompute
        calls: list[object] = []
        model.transformer["h"][1].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
            loss = model(ids, ids, keys=torch.arange(4))
            loss.backward()
        assert len(calls) == 1 + recompute
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == 1 + len(list(GPT(config).parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("chunk", [1, 4])
def test_attention_weights_are_recomputed(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are kept. Loss and gradients are the same bits for whole micro-batches, else close."""
    config = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=50, dropout=0.2)
    ids = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("nanogpt.estimates.memory.WEIGHTS_AT_A_TIME", chunk * 2 * 12**2)
    found: list[list[torch.Tensor]] = []
    for recompute in (False, True):
        model = GPT(config)
        model.recompute_attention_weights = recompute
        shapes: list[tuple[int, ...]] = []
        with saved_tensors_hooks(lambda x, shapes=shapes: shapes.append(tuple(x.shape)) or x, lambda x: x):
            loss = model(ids, ids, keys=torch.arange(4))
        assert any(shape[-2:] == (12, 12) for shape in shapes) != recompute
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for kept, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, kept, rtol=0 if chunk == 4 else 1e-5, atol=0 if chunk == 4 else 1e-5)


def test_an_attention_kernel_that_shares_groups_gives_the_same() -> None:
    config = ModelConfig(n_layer=2, n_head=4, n_kv_head=2, n_embd=16, block_size=16, vocab_size=50)
    ids = torch.randint(50, (4, 16), generator=torch.Generator().manual_seed(1))
    found: list[list[torch.Tensor]] = []
    for fused in (False, True):
        model = GPT(config)
        model.fused_groups = fused
        loss = model(ids, ids)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for repeated, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, repeated)
