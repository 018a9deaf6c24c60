"""The loss that never holds all logits, against torch's cross-entropy over all of them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt.estimates import memory
from nanogpt.model import loss as module
from nanogpt.model.loss import IGNORED, linear_cross_entropy


@pytest.fixture(params=[128 * 2**20, 4 * 64 * 5], ids=["one chunk", "chunks of 5 rows"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CHUNK_BYTES", request.param)


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    bias = torch.zeros(64).masked_fill(torch.arange(64) >= 61, float("-inf"))
    targets = torch.randint(61, (23,))
    targets[::7] = IGNORED
    return torch.randn(23, 8, requires_grad=True), torch.randn(64, 8, requires_grad=True), bias, targets


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("scale", [1.0, 3.7])
def test_loss_and_gradients_are_those_of_the_formula(scale: float) -> None:
    x, weight, bias, targets = problem()
    loss = linear_cross_entropy(x, weight, bias, targets)
    ours = torch.autograd.grad(loss * scale, [x, weight])
    expected = F.cross_entropy(x @ weight.T + bias, targets, ignore_index=IGNORED, reduction="sum")
    assert torch.allclose(loss, expected, rtol=1e-6)
    for mine, theirs in zip(ours, torch.autograd.grad(expected * scale, [x, weight]), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    assert (ours[1][61:] == 0).all() and (ours[0][::7] == 0).all()
    with torch.no_grad():
        assert torch.allclose(linear_cross_entropy(x, weight, bias, targets), expected, rtol=1e-6)
    with torch.inference_mode():
        assert torch.allclose(linear_cross_entropy(x, weight, None, targets.clamp(min=0)), formula(x, weight, targets))


def formula(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(x @ weight.T, targets.clamp(min=0), reduction="sum")


@pytest.mark.usefixtures("chunks")
def test_under_autocast_the_products_are_in_its_precision() -> None:
    x, weight, bias, targets = problem()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, bias, targets)
        logits = F.linear(x, weight, bias)
        assert logits.dtype == torch.bfloat16
    expected = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    assert loss.dtype == torch.float32 and torch.allclose(loss, expected, rtol=1e-6)
    ours, theirs = torch.autograd.grad(loss, [x, weight]), torch.autograd.grad(expected, [x, weight])
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.01 * other.norm()


def test_the_logits_are_never_there_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that autograd keeps, or that a linear layer returns, has more rows than a chunk."""
    monkeypatch.setattr(memory, "CHUNK_BYTES", 4 * 64 * 5)
    rows: list[int] = []
    linear = F.linear

    def watched(*arguments: Tensor) -> Tensor:
        out = linear(*arguments)
        rows.append(out.shape[0])
        return out

    monkeypatch.setattr(module.F, "linear", watched)
    x, weight, bias, targets = problem()
    linear_cross_entropy(x, weight, bias, targets).backward()
    assert rows == [5, 5, 5, 5, 3]
