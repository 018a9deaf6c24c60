"""Scores against the plainest computation: one sequence at a time, all its logits, no padding and no sharing."""

import math
import random
from itertools import chain

import pytest
import torch

from nanogpt.config import ModelConfig
from nanogpt.device import Compute
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.evaluation import scoring
from nanogpt.evaluation.loss import Stopped
from nanogpt.evaluation.scoring import Request, Score, score
from nanogpt.model.gpt import GPT

CPU = Compute(torch.device("cpu"), "fp32", "test")
V, T = 50, 12
FORMS = [
    {},
    {"position": "rotary", "qk_norm": True, "n_kv_head": 1, "norm": "rmsnorm", "tie_weights": False},
    {"vocab_multiple": 64},
]


def model_of(**form: object) -> GPT:
    settings: dict[str, object] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": T, "vocab_size": V}
    model = GPT(ModelConfig(**settings | form), seed=5).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)  # decided opinions
    return model


def plain(model: GPT, context: list[int], continuation: list[int]) -> Score:
    """Score with the T inputs before the last token; the continuation must not be longer."""
    ids = torch.tensor([(context + continuation)[-(T + 1) :]])
    with torch.no_grad():
        likely = model(ids[:, :-1])[0, -len(continuation) :, :V].double().log_softmax(dim=1)
    wanted = ids[0, -len(continuation) :]
    return Score(float(likely.gather(1, wanted[:, None]).sum()), bool((likely.argmax(1) == wanted).all()))


def requests(seed: int, count: int = 30) -> list[Request]:
    """Return contexts of lengths around the limit, with some continuations that the model would choose."""
    draw = random.Random(seed)
    ids = lambda n: [draw.randrange(V) for _ in range(n)]  # noqa: E731
    return [Request(ids(draw.randint(1, T + 4)), [ids(draw.randint(1, 5)) for _ in range(4)]) for _ in range(count)]


@pytest.mark.parametrize("form", FORMS, ids=["gpt2", "modern", "padded vocabulary"])
def test_scores_are_those_of_single_sequences(form: dict[str, object]) -> None:
    model, asked = model_of(**form), requests(1)
    for request in asked[:10]:  # a continuation that is greedy
        with torch.no_grad():
            best = int(model(torch.tensor([request.context[-T:]]))[0, -1].argmax())
        request.continuations[0][:] = [best]
    expected = [[plain(model, request.context, one) for one in request.continuations] for request in asked]
    assert sum(one.greedy for those in expected for one in those) >= 10
    for batch_tokens in (1, 100, 100_000):
        found = score(model, asked, CPU, ProcessGroup(), batch_tokens)
        for ours, theirs in zip(chain(*found), chain(*expected), strict=True):
            assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=1e-5, abs=1e-5)
            assert ours.greedy == theirs.greedy


def test_a_context_is_computed_once_for_all_its_continuations() -> None:
    context, endings = [1, 2, 3, 4, 5], [[6, 7, 8], [6, 9], [10]]
    (row,) = scoring.build_rows([Request(context, endings)], T)
    assert row.length == 5 + 2 + 1 + 0
    assert len(list(scoring.build_rows([Request([*context] * 2, endings)], T))) == 1, "10 + 3 - 1 inputs fit"
    assert [len(one.context) for one in scoring.build_rows([Request([*context] * 3, endings)], T)] == [10, 11, 12]


@pytest.mark.parametrize("length", [1, T - 1, T, T + 1, 2 * T, 2 * T + 3, 5 * T - 1])
def test_long_texts_are_read_in_windows(length: int) -> None:
    """Disjoint targets, T at a time, each window after one token of context; the last one after all that fits."""
    model, draw = model_of(), random.Random(length)
    text = [draw.randrange(V) for _ in range(length)]
    total, whole = 0.0, [7, *text]
    for first in range(0, length, T):
        end = min(first + T, length)
        total += plain(model, whole[: first + 1], whole[first + 1 : end + 1]).log_likelihood
    ((found,),) = score(model, [Request([7], [text])], CPU, ProcessGroup())
    assert found.log_likelihood == pytest.approx(total, rel=1e-6)


def test_equal_likelihoods_go_to_the_first_and_nothing_is_certain() -> None:
    model = model_of()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    ((first, second, nothing),) = score(model, [Request([3], [[0, 0], [0, 1], []])], CPU, ProcessGroup())
    assert first.greedy and not second.greedy
    assert first.log_likelihood == pytest.approx(-2 * math.log(V))
    assert nothing == Score(0.0, True)


def test_it_stops_between_batches() -> None:
    calls = iter([False, False, True])
    with pytest.raises(Stopped):
        score(model_of(), requests(2), CPU, ProcessGroup(), 20, lambda: next(calls))


def test_only_wanted_logits_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = scoring.score_tokens
    monkeypatch.setattr(scoring, "score_tokens", lambda model, x, y: (seen.append(len(x)), real(model, x, y))[1])
    asked = requests(3)
    score(model_of(), asked, CPU, ProcessGroup())
    assert sum(seen) == sum(len(one) for request in asked for one in request.continuations)
