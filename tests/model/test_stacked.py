"""Several models computed as one network, against each of them alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.errors import BadInput
from nanogpt.model.gpt import GPT
from nanogpt.model.loss import linear_cross_entropy
from nanogpt.model.stacked import StackedGPT
from tests.model.test_gpt import randomize, small
from tests.model.test_switches import FORMS

K, B, T = 3, 4, 12


def plain_loss(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None) -> Tensor:
    """The loss in the precision of its arguments, by autograd: (), or (K,) of a stack."""
    stacked = weight.dim() == 3
    K = len(weight) if stacked else 1
    losses: list[Tensor] = []
    for part, matrix, target in zip(x.chunk(K), weight if stacked else [weight], targets.chunk(K), strict=True):
        logits = F.linear(part, matrix)
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        losses.append(F.cross_entropy(logits if bias is None else logits + bias, target, reduction="sum"))
    return torch.stack(losses) if stacked else losses[0]


def build(form: dict[str, Any], rates: tuple[float, ...], dtype: torch.dtype) -> list[GPT]:
    models = [GPT(small(**form, dropout=rate)).to(dtype) for rate in rates]
    for model in models:
        randomize(model)
        model.compiled_loss = plain_loss if dtype == torch.float64 else None  # type: ignore[assignment]
    return models


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("rates", [(0.0, 0.0, 0.0), (0.3, 0.3, 0.3), (0.0, 0.2, 0.5)], ids=str)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str)
def test_losses_and_gradients_are_those_of_each_model(
    form: dict[str, Any], rates: tuple[float, ...], dtype: torch.dtype, near: float
) -> None:
    torch.manual_seed(0)
    models = build(form, rates, dtype)
    ids, targets = torch.randint(50, (K, B, T)), torch.randint(50, (K, B, T))
    keys = torch.randint(2**62, (K, B))
    expected: list[Tensor] = []
    for number, model in enumerate(models):
        loss = model(ids[number], targets[number], keys=keys[number])
        loss.backward()
        expected.append(loss.detach())
    gradients = [{name: p.grad for name, p in model.named_parameters()} for model in models]
    stack = StackedGPT(models)
    stack.compiled_loss = models[0].compiled_loss
    losses = stack(ids.flatten(0, 1), targets.flatten(0, 1), keys=keys.flatten())
    torch.testing.assert_close(losses.detach(), torch.stack(expected), rtol=near, atol=0)
    losses.sum().backward()
    found = {
        id(parameter): parameters.grad[number]
        for parameters, held in stack.parameters_of.items()
        for number, parameter in enumerate(held)
    }
    for model, theirs in zip(models, gradients, strict=True):
        for name, parameter in model.named_parameters():
            scale = float(theirs[name].abs().max())
            error = float((found[id(parameter)] - theirs[name]).abs().max())
            assert error <= near * max(scale, 1.0), (name, error, scale)


def test_the_models_own_parameters_are_views() -> None:
    """What changes a model, such as its optimizer or a checkpoint, changes the stack, and a tied head is one stack."""
    models = build({}, (0.0, 0.0), torch.float32)
    before = [model.token_embedding.weight.clone() for model in models]
    stack = StackedGPT(models)
    assert stack.lm_head.weight is stack.transformer["wte"].weight
    for number, model in enumerate(models):
        assert torch.equal(model.token_embedding.weight, before[number]), "stacking changes no weight"
        with torch.no_grad():
            model.token_embedding.weight.fill_(number)
        assert stack.lm_head.weight[number].eq(number).all()
    assert len(list(stack.parameters())) == len(list(models[0].parameters()))


def test_an_unknown_layer_is_refused() -> None:
    models = build({}, (0.0, 0.0), torch.float32)
    for model in models:
        model.transformer["ln_f"] = nn.GroupNorm(2, 24)
    with pytest.raises(BadInput, match=r"transformer\.ln_f: a GroupNorm of several models can't be trained as one"):
        StackedGPT(models)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [5, 100])
def test_the_loss_in_chunks(softcap: float | None, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients of a stack are those of each matrix, also in several chunks and with ignored targets."""
    monkeypatch.setattr("nanogpt.model.loss.chunk_rows", lambda count, gpu: rows)
    x, weight = torch.randn(K * 17, 8), torch.randn(K, 11, 8)
    bias = torch.zeros(11).masked_fill(torch.arange(11) >= 9, -torch.inf)
    targets = torch.randint(9, (K * 17,))
    targets[::4] = -1
    stacked = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    losses = linear_cross_entropy(*stacked, bias, targets, softcap)
    scales = torch.tensor([1.0, 0.5, 2.0])
    (losses * scales).sum().backward()
    for number in range(K):
        part = slice(17 * number, 17 * (number + 1))
        alone = [x[part].clone().requires_grad_(), weight[number].clone().requires_grad_()]
        loss = linear_cross_entropy(*alone, bias, targets[part], softcap)
        (loss * scales[number]).backward()
        torch.testing.assert_close(losses[number], loss)
        torch.testing.assert_close(stacked[0].grad[part], alone[0].grad)
        torch.testing.assert_close(stacked[1].grad[number], alone[1].grad)
