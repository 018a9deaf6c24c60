"""Schedules and AdamW against plain formulas."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.config import ModelConfig, OptimizerConfig, ScheduleConfig
from nanogpt.model.gpt import GPT
from nanogpt.optim.build import build_optimizer
from nanogpt.optim.schedule import lr_scale


@pytest.mark.parametrize("step", [0, 1, 50, 99, 100, 101, 777, 1999])
def test_cosine_is_nanogpts(step: int) -> None:
    """get_lr of nanoGPT with warmup_iters=100, lr_decay_iters=2000, learning_rate=1e-3, min_lr=1e-4."""
    if step < 100:
        expected = 1e-3 * (step + 1) / 101
    else:
        expected = 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / 1900)) * 9e-4
    schedule = ScheduleConfig(name="cosine", warmup_steps=100, min_lr_ratio=0.1)
    assert math.isclose(1e-3 * lr_scale(step, 2000, schedule), expected, rel_tol=1e-12)


def test_shapes() -> None:
    linear = ScheduleConfig(name="linear", min_lr_ratio=0.0)
    assert [lr_scale(step, 4, linear) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    constant = ScheduleConfig(name="constant", warmup_steps=3)
    assert [lr_scale(step, 9, constant) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    wsd = ScheduleConfig(name="wsd", warmup_steps=1, decay_fraction=0.4, min_lr_ratio=0.0)
    assert [lr_scale(step, 10, wsd) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    recipe = ScheduleConfig(name="wsd", warmup_steps=5, decay_fraction=0.6, min_lr_ratio=0.0)
    rising, falling = [(s + 1) / 6 for s in range(5)], [1 - n / 60 for n in range(60)]
    assert [lr_scale(step, 100, recipe) for step in range(100)] == [*rising, *[1.0] * 35, *falling]
    early = ScheduleConfig(name="linear", decay_steps=2, min_lr_ratio=0.5)
    assert [lr_scale(step, 9, early) for step in (0, 1, 2, 8)] == [1.0, 0.75, 0.5, 0.5]


@given(
    st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    st.integers(1, 500),
    st.floats(0, 1),
    st.floats(0.01, 1),
    st.data(),
)
def test_always_between_zero_and_one(name: str, steps: int, low: float, fraction: float, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, steps))
    schedule = ScheduleConfig.model_validate(
        {"name": name, "warmup_steps": warmup, "min_lr_ratio": low, "decay_fraction": fraction}
    )
    scales = [lr_scale(step, steps, schedule) for step in range(steps + 2)]
    assert all(0 <= scale <= 1 + 1e-12 for scale in scales)
    after = scales[warmup:]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after)), "never rises after warm-up"


def test_groups() -> None:
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=8, block_size=8, vocab_size=9))
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.3), "cpu")
    decay, none = optimizer.param_groups
    assert (decay["weight_decay"], none["weight_decay"]) == (0.3, 0.0)
    assert all(p.dim() == 2 for p in decay["params"]) and all(p.dim() == 1 for p in none["params"])
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_adamw_is_its_formula() -> None:
    """Three steps of Loshchilov & Hutter's algorithm 2 in float64, by hand."""
    config = OptimizerConfig(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=4, block_size=4, vocab_size=5), seed=1)
    optimizer = build_optimizer(model, config, "cpu")
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in expected.items()}
    for t in range(1, 4):
        ids = torch.tensor([[1, 2, 3, 4]])
        optimizer.zero_grad()
        model(ids, ids).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            g = p.grad.double()
            m, v = moments[name]
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.95).add_(g * g, alpha=0.05)
            expected[name] *= 1 - 0.01 * (0.1 if p.dim() == 2 else 0.0)
            expected[name] -= 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        optimizer.step()
        for name, p in model.named_parameters():
            assert torch.allclose(p.double(), expected[name], atol=1e-6), name
