"""Bytes that a step moves at least: never more than an eager step's operators read and write, and not far below it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanogpt.config import ModelConfig, OptimizerConfig
from nanogpt.estimates.flops import multiplied_parameters, parameter_counts
from nanogpt.estimates.memory import state_bytes
from nanogpt.estimates.memory_traffic import step_traffic
from nanogpt.model.gpt import GPT
from nanogpt.optim.build import build_optimizer
from tests.estimates.test_flops import small


class Counted(TorchDispatchMode):
    """Bytes of all tensors that go into operators and come out of them; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {}, result)) if isinstance(leaf, Tensor)]
        if not func.is_view and "empty" not in str(func) and "detach" not in str(func):
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def moved_by_a_step(config: ModelConfig, sequences: int, micro_batches: int) -> tuple[int, int]:
    """Count bytes of forward, backward and clipping of eager micro-batches, and of the optimizer's step, in fp32."""
    model = GPT(config)
    optimizer = build_optimizer(model, OptimizerConfig(), "cpu")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # moments are there
    optimizer.zero_grad(set_to_none=True)
    ids = torch.randint(50, (sequences, config.block_size))
    with Counted() as passes:
        for _ in range(micro_batches):
            model(ids, ids).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with Counted() as update:
        optimizer.step()
    return passes.moved, update.moved


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_embd": 128, "block_size": 64, "n_layer": 3},
        {"vocab_size": 2000, "activation": "swiglu", "norm": "rmsnorm", "position": "rotary", "tie_weights": False},
    ],
    ids=str,
)
def test_an_eager_step_moves_more_but_not_many_times_as_much(shape: dict[str, object], micro_batches: int) -> None:
    config = small(**shape)
    floor = step_traffic(config, "fp32", 4, micro_batches)
    passes, update = moved_by_a_step(config, 4, micro_batches)
    assert 0.25 < floor.total / (passes + update) < 1


def test_the_optimizer_reads_and_writes_its_state_once() -> None:
    """Weights, two moments and gradients go into the fused kernel; the first three are written by it."""
    config = small(n_embd=64)
    _, update = moved_by_a_step(config, 2, 1)
    n_params = parameter_counts(config)["total"]
    unclipped = step_traffic(config, "fp32", 2, 1, clipped=False).optimizer
    assert unclipped == 4 * 7 * n_params
    assert update >= 4 * 4 * n_params
    assert step_traffic(config, "fp32", 2, 1).optimizer - unclipped == 4 * n_params
    muon = step_traffic(config, "fp32", 2, 1, "muon", clipped=False).optimizer
    assert unclipped - muon == 2 * (2 * 4 * n_params - state_bytes(config, "muon"))


def test_half_precision_halves_weights_and_logits_and_keeps_gradients_whole() -> None:
    config = small(vocab_size=1000)
    whole, half = (step_traffic(config, precision, 3, 2) for precision in ("fp32", "bf16"))
    assert (whole.weights, whole.logits) == (2 * half.weights, 2 * half.logits)
    assert (whole.gradients, whole.optimizer) == (half.gradients, half.optimizer)
    assert half.activations < whole.activations
    assert half.weights == 2 * 2 * 2 * multiplied_parameters(config)
    assert half.logits == 2 * 2 * 4 * 3 * 12 * 1024  # two micro-batches, two bytes, four times


def test_gradients_are_written_once_and_then_added_to() -> None:
    config = small()
    one, three = (step_traffic(config, "fp32", 1, count).gradients for count in (1, 3))
    assert one == 4 * parameter_counts(config)["total"] and three == 5 * one
