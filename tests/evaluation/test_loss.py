"""The evaluation against a plain computation over the whole split."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nanogpt import tokenizer as tokenizers
from nanogpt.config import TrainConfig
from nanogpt.data.prepare import prepare
from nanogpt.device import Compute
from nanogpt.evaluation.loss import LossEvaluation, Stopped
from nanogpt.model.gpt import GPT

CPU = Compute(torch.device("cpu"), "fp32", "test")
CHOICES = [{"data.tokenizer": "char"}, {"data.tokenizer": "bpe", "data.vocab_size": 300}]


@pytest.mark.parametrize("choice", CHOICES, ids=["char", "bpe"])
def test_whole_split_in_nats_per_token_and_bits_per_byte(
    config: Callable[..., TrainConfig], choice: dict[str, object]
) -> None:
    built = config(**choice, **{"eval.tokens": None})
    dataset = prepare(built.data)
    model = GPT(built.model.with_vocab(dataset.vocab_size), seed=1)
    results = LossEvaluation(dataset, built.eval, 16, CPU)(model)
    ids = torch.from_numpy(dataset.val.read(0, 0, dataset.val.n_tokens))
    n = (len(ids) - 1) // 16
    x, y = ids[: n * 16].view(n, 16), ids[1 : n * 16 + 1].view(n, 16)
    model.eval()
    with torch.no_grad():
        loss = float(F.cross_entropy(model(x).flatten(0, 1).double(), y.flatten()))
    assert math.isclose(results["val_loss"], loss, rel_tol=1e-6)
    text_bytes = len(tokenizers.decode(dataset.tokenizer, y.flatten().numpy().astype(np.uint32)).encode())
    assert math.isclose(results["val_bpb"], loss * n * 16 / math.log(2) / text_bytes, rel_tol=1e-6)
    assert abs(results["train_loss"] - loss) < 0.2


def test_evaluating_leaves_no_trace(config: Callable[..., TrainConfig]) -> None:
    built = config()
    dataset = prepare(built.data)
    model = GPT(built.model.with_vocab(dataset.vocab_size), seed=1).train()
    evaluate = LossEvaluation(dataset, built.eval, 16, CPU)
    before = torch.get_rng_state()
    assert evaluate(model) == evaluate(model)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    with pytest.raises(Stopped):
        evaluate(model, lambda: True)
    assert model.training


def test_the_host_waits_once_for_a_split(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """And not in every batch: the bytes of targets are counted where they are read."""
    built = config(**{"eval.tokens": None, "eval.train": False})
    dataset = prepare(built.data)
    model = GPT(built.model.with_vocab(dataset.vocab_size), seed=1)
    evaluate, copies = LossEvaluation(dataset, built.eval, 16, CPU), list[tuple[int, ...]]()
    real = torch.Tensor.cpu

    def count(tensor: torch.Tensor) -> torch.Tensor:
        copies.append(tuple(tensor.shape))
        return real(tensor)

    monkeypatch.setattr("nanogpt.evaluation.loss.CPU_BATCH_TOKENS", 64)
    monkeypatch.setattr(torch.Tensor, "cpu", count)
    evaluate(model)
    assert copies == [(-(-len(evaluate.windows["val"]) // 4),)] and copies[0][0] > 10
