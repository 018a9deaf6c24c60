"""Muon against plain loops: the orthogonal factor, one matrix at a time, and what several ranks share."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from nanogpt.config import ModelConfig, OptimizerConfig
from nanogpt.errors import BadInput
from nanogpt.model.gpt import GPT
from nanogpt.optim.build import build_optimizer
from nanogpt.optim.groups import parameter_kind
from nanogpt.optim.orthogonal import POLYNOMIALS, iterate, orthogonalize
from nanogpt.optim.schedule import momentum_at

MODERN = {"activation": "swiglu", "n_head": 4, "n_kv_head": 2, "tie_weights": False, "norm": "rmsnorm", "bias": False}


def small(**changes: object) -> GPT:
    values = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 9} | changes
    return GPT(ModelConfig.model_validate(values), seed=1)


def polar(matrix: Tensor) -> Tensor:
    """U V^T, in float64."""
    u, _, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ vt


@pytest.mark.parametrize(("rows", "cols"), [(24, 24), (24, 30), (16, 64), (1, 5)])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_the_result_is_the_polar_factor(rows: int, cols: int, scale: float) -> None:
    """Ten iterations are exact; five leave singular values near 1 and every direction where it was."""
    stack = scale * torch.randn(3, rows, cols, generator=torch.Generator().manual_seed(rows + cols))
    if rows == cols:  # away from singular
        stack += 3 * scale * torch.eye(rows)
    exact, quick = orthogonalize(stack, 10), orthogonalize(stack, 5)
    for before, after, near in zip(stack, exact, quick, strict=True):
        assert torch.allclose(after.double(), polar(before), atol=1e-5)
        values = torch.linalg.svdvals(near)
        assert float(values.min()) > 0.8 and float(values.max()) < 1.2
        aligned = torch.linalg.svd(before)[0].mT @ near @ torch.linalg.svd(before, full_matrices=False)[2].mT
        assert torch.allclose(aligned, torch.diag(torch.diagonal(aligned)), atol=1e-3), "the same U and V"


def test_bf16_comes_close() -> None:
    x = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(0))
    x /= 1.01 * torch.linalg.matrix_norm(x, keepdim=True)
    for before, after in zip(x, iterate(x.bfloat16(), POLYNOMIALS[:5]), strict=True):
        values = torch.linalg.svdvals(after.float())
        assert float(values.min()) > 0.75 and float(values.max()) < 1.25
        cosine = float((after.double() * polar(before)).sum()) / math.sqrt(32 * float(after.double().square().sum()))
        assert cosine > 0.99


def test_zeros_and_vanishing_directions_stay_finite() -> None:
    low = torch.randn(1, 16, 2) @ torch.randn(1, 2, 48)
    for stack in (torch.zeros(2, 16, 48), low, torch.zeros(2, 8, 8)):
        for steps in (1, 5, 10):
            found = orthogonalize(stack, steps)
            assert bool(torch.isfinite(found).all()) and float(torch.linalg.matrix_norm(found, 2).max()) < 2
    assert not orthogonalize(torch.zeros(1, 4, 4), 5).any()


def test_kinds() -> None:
    kinds = {name: parameter_kind(name) for name, _ in small(tie_weights=False, qk_norm=True).named_parameters()}
    assert {name for name, kind in kinds.items() if kind == "embedding"} == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
    }
    assert kinds["lm_head.weight"] == "head"
    matrices = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    expected = {f"transformer.h.{layer}.{name}.weight" for layer in range(2) for name in matrices}
    assert {name for name, kind in kinds.items() if kind == "matrix"} == expected
    vectors = ("ln_1.weight", "attn.c_attn.bias", "attn.q_norm.weight", "conv_1.weight", "attn.conv.weight")
    assert all(parameter_kind(f"transformer.h.0.{name}") == "vector" for name in vectors)


def test_each_kind_has_its_own_rate_and_vectors_never_decay() -> None:
    model = small(tie_weights=False)
    config = OptimizerConfig(lr=0.1, embedding_lr=0.2, head_lr=0.3, vector_lr=0.4)
    names = {id(p): name for name, p in model.named_parameters()}
    for rule in ("adamw", "muon"):
        optimizer = build_optimizer(model, config.model_copy(update={"name": rule}), "cpu")
        found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
        assert found.keys() == set(names.values())
        rates = {"matrix": 0.1, "embedding": 0.2, "head": 0.3, "vector": 0.4}
        assert all(group["peak_lr"] == rates[parameter_kind(name)] for name, group in found.items())
        decaying = {parameter_kind(name) for name, group in found.items() if group["weight_decay"]}
        assert decaying == ({"matrix"} if rule == "muon" else {"matrix", "embedding", "head"})


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_mup_slows_what_adam_sums_over_the_width(rule: str) -> None:
    """Yang et al. 2022, table 3; an orthogonalised update needs no scaling. Decay per step is unchanged."""
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=20, block_size=8, tie_weights=False))
    config = OptimizerConfig.model_validate({"name": rule, "lr": 0.02, "weight_decay": 0.1, "head_lr": 0.01})
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in build_optimizer(model, config, "cpu", width_multiplier=4.0).param_groups:
        for parameter in group["params"]:
            kind = parameter_kind(names[parameter])
            slower = 4.0 if kind == "head" or (kind == "matrix" and rule == "adamw") else 1.0
            assert group["peak_lr"] == (0.01 if kind == "head" else 0.02) / slower, names[parameter]
            decays = kind == "matrix" if rule == "muon" else kind != "vector"
            assert group["weight_decay"] == pytest.approx(0.1 * slower if decays else 0.0)


def test_without_rates_of_its_own_adamw_is_what_it_was() -> None:
    """To a bit: torch's AdamW over nanoGPT's two groups, by dimension, one rate for all."""
    model = small()
    twin = copy.deepcopy(model)
    ours = build_optimizer(model, OptimizerConfig(lr=0.01), "cpu")
    decays = [[p for p in twin.parameters() if (p.dim() >= 2) == decay] for decay in (True, False)]
    groups = [{"params": decays[0], "weight_decay": 0.1}, {"params": decays[1], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for _ in range(5):
        backward(model)
        backward(twin)
        ours.step()
        theirs.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def backward(model: GPT) -> None:
    ids = torch.arange(16).reshape(2, 8) % 9
    model.zero_grad()
    model(ids, ids.roll(1)).backward()


def matrices(name: str, tensor: Tensor, config: ModelConfig) -> Iterator[Tensor]:
    """Return the matrices of one parameter, by hand."""
    C, kv = config.n_embd, config.kv_heads * config.head_size
    if name.endswith("c_attn.weight"):
        yield from (tensor[:C], tensor[C : C + kv], tensor[C + kv :])
    elif name.endswith("c_fc.weight") and config.activation == "swiglu":
        yield from (tensor[: len(tensor) // 2], tensor[len(tensor) // 2 :])
    else:
        yield tensor


def plain(update: Tensor, steps: int) -> Tensor:
    """Return the orthogonal factor of one matrix, in float64, as published."""
    x = update.double() if update.shape[0] <= update.shape[1] else update.double().T
    x = x / (1.01 * x.norm())
    for a, b, c in POLYNOMIALS[:steps]:
        x = a * x + (b * (x @ x.T) + c * (x @ x.T) @ (x @ x.T)) @ x
    return x if update.shape[0] <= update.shape[1] else x.T


@pytest.mark.parametrize("rule", ["muon", "normuon"])
@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("shape", [{}, MODERN], ids=["gpt2", "modern"])
def test_steps_are_a_plain_loop_over_single_matrices(rule: str, cautious: bool, shape: dict[str, object]) -> None:
    model = small(**shape)
    about = {"lr": 0.02, "embedding_lr": 0.01, "head_lr": 0.01, "vector_lr": 0.01, "weight_decay": 0.5}
    config = OptimizerConfig.model_validate(
        {"name": rule, "momentum": 0.9, "ns_steps": 4, "cautious_decay": cautious, **about}
    )
    optimizer = build_optimizer(model, config, "cpu")
    hidden = {name: p for name, p in model.named_parameters() if parameter_kind(name) == "matrix"}
    rest = {name: p for name, p in model.named_parameters() if parameter_kind(name) != "matrix"}
    others = {name: torch.nn.Parameter(p.detach().clone()) for name, p in rest.items()}
    adamw = torch.optim.AdamW(others.values(), lr=0.01, betas=config.betas, eps=config.eps, weight_decay=0, fused=True)
    expected = {name: p.detach().double().clone() for name, p in hidden.items()}
    momentum = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros(len(p), 1).double() for name, p in expected.items()}
    for _ in range(3):
        backward(model)
        for name, p in hidden.items():
            assert p.grad is not None
            g = p.grad.double()
            momentum[name] = 0.9 * momentum[name] + 0.1 * g
            ahead = 0.9 * momentum[name] + 0.1 * g
            parts = [matrices(name, t, model.config) for t in (expected[name], ahead, second[name])]
            for weight, update, v in zip(*parts, strict=True):
                o = plain(update, 4)
                if rule == "normuon":
                    v.copy_(0.95 * v + 0.05 * (o * o).mean(1, keepdim=True))
                    o = (o / v.sqrt()) * o.norm() / (o / v.sqrt()).norm()
                o = o * max(1, len(o) / len(o.T)) ** 0.5
                mask = (o * weight >= 0).double() if cautious else 1.0
                weight.copy_(weight - 0.02 * 0.5 * weight * mask - 0.02 * o)
        for name, q in others.items():
            q.grad = rest[name].grad
        adamw.step()
        optimizer.step()
        for name, p in hidden.items():
            apart = (p - expected[name]).abs() > 3e-5
            assert float(apart.double().mean()) <= (0.01 if cautious else 0.0), name  # signs of nearly nothing
        assert all(torch.equal(p, others[name]) for name, p in rest.items())


def test_what_is_no_matrix_is_refused_by_name() -> None:
    model = small()
    attention = model.get_submodule("transformer.h.1.attn.c_proj")
    attention.weight = torch.nn.Parameter(torch.zeros(4, 4, 4))
    with pytest.raises(BadInput, match=r"optimizer.name=muon: transformer.h.1.attn.c_proj.weight is 4 x 4 x 4"):
        build_optimizer(model, OptimizerConfig(name="muon"), "cpu")


def test_momentum_warms_up_in_a_straight_line() -> None:
    config = OptimizerConfig(name="muon", momentum_start=0.8, momentum=0.9, momentum_warmup_steps=4)
    assert [round(momentum_at(step, config), 12) for step in range(6)] == [0.8, 0.825, 0.85, 0.875, 0.9, 0.9]
    assert momentum_at(0, OptimizerConfig(name="muon")) == 0.95


def test_grad_scaler_skips_the_whole_step() -> None:
    """A gradient that overflows under fp16: neither half of the parameters moves."""
    model = small()
    optimizer = build_optimizer(model, OptimizerConfig(name="muon"), "cpu")
    scaler = torch.amp.GradScaler("cpu")
    before = copy.deepcopy(model.state_dict())
    for bad in (True, False):
        backward(model)
        for p in model.parameters():
            assert p.grad is not None
            p.grad.mul_(scaler.get_scale())
        if bad:
            next(model.parameters()).grad[0, 0] = math.inf  # type: ignore[index]
        scaler.scale(torch.zeros(()))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        same = [torch.equal(before[name], value) for name, value in model.state_dict().items()]
        assert all(same) if bad else not any(same)
