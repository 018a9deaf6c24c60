"""The compiled loss: one program for chunks of any batch, with the numbers and no more memory than the eager loss."""
# pyright: reportPrivateUsage=false

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from nanogpt.estimates import memory
from nanogpt.model.gpt import GPT
from nanogpt.model.loss import IGNORED, compile_loss, linear_cross_entropy
from tests.estimates.test_flops import small

P, C, ROWS = 512, 64, 16  # ROWS are those of a chunk


@pytest.fixture(autouse=True)
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(memory, "CHUNK_BYTES", 4 * P * ROWS)


def count_compilations() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def compute(loss: Callable[..., Tensor], rows: int, softcap: float | None = None, bias: bool = True) -> list[Tensor]:
    """Return loss and gradients, in bf16, of a batch of `rows` whose loss is scaled as gradient accumulation does."""
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, C, generator=draw, requires_grad=True)
    weight = torch.randn(P, C, generator=draw, requires_grad=True)
    targets = torch.randint(P - 12, (rows,), generator=draw)
    targets[::7] = IGNORED
    pad = torch.zeros(P).masked_fill(torch.arange(P) >= P - 12, -torch.inf) if bias else None
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(x, weight, pad, targets, softcap)
    return [value.detach(), *torch.autograd.grad(value / 3.7, [x, weight])]


def measure_peak(run: Callable[[], object]) -> int:
    """Return the most bytes that `run` has in tensors at a time, from every allocation that torch's profiler saw."""
    with profile(profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events: list[Any] = [one for one in profiler.profiler.kineto_results.events() if one.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_one_program_has_the_eager_numbers_and_no_more_memory() -> None:
    loss, compilations = compile_loss(), count_compilations()
    for rows in (ROWS, 4 * ROWS, 4 * ROWS + 3, 50 * ROWS + 1, 5 * ROWS - 1):
        eager, compiled = compute(linear_cross_entropy, rows), compute(loss, rows)
        assert torch.allclose(compiled[0], eager[0], rtol=1e-5)
        for ours, theirs in zip(compiled[1:], eager[1:], strict=True):
            assert ours.dtype == torch.float32 and (ours - theirs).norm() < 0.005 * theirs.norm(), rows
        assert not compiled[2][P - 12 :].any() and not compiled[1][::7].any()
    assert count_compilations() == compilations + 1
    for rows in (4 * ROWS, 50 * ROWS):
        assert measure_peak(lambda n=rows: compute(loss, n)) <= 1.1 * measure_peak(
            lambda n=rows: compute(linear_cross_entropy, n)
        )
    with torch.no_grad():
        x, weight, targets = torch.randn(40, C), torch.randn(P, C), torch.randint(P, (40,))
        assert torch.equal(loss(x, weight, None, targets, None), linear_cross_entropy(x, weight, None, targets))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_softcap_without_padding(precision: str) -> None:
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with autocast:
        eager, compiled = (
            compute(one, 2 * ROWS + 5, 2.0, bias=False) for one in (linear_cross_entropy, compile_loss())
        )
    for ours, theirs in zip(compiled, eager, strict=True):
        assert (ours - theirs).norm() < 0.005 * theirs.norm()


@pytest.mark.slow
def test_the_graph_does_not_grow_with_the_batch() -> None:
    """The features are one graph, however many chunks the loss has; the loss is the only break."""
    model = GPT(small(n_embd=C, n_layer=1, vocab_size=P))
    model.compiled_loss = compile_loss()
    nodes: list[int] = []
    for sequences in (6, 67):  # of 12 tokens: 5 and 51 chunks
        torch._dynamo.reset()
        ids = torch.randint(P, (sequences, 12))
        found = torch._dynamo.explain(model)(ids, ids)
        assert (found.graph_count, len(found.break_reasons or [])) == (1, 1), found.break_reasons
        nodes.append(sum(len(graph.graph.nodes) for graph in found.graphs))
    assert nodes[0] == nodes[1] < 60
