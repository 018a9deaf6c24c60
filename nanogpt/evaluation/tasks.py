"""The benchmarks by name, and their evaluation: documents are read and encoded once, then scored by many models."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from nanogpt.config import BenchmarkFiles, BenchmarkName
from nanogpt.device import Compute
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.errors import BadData, BadInput
from nanogpt.evaluation.hellaswag import HellaSwag
from nanogpt.evaluation.lambada import Lambada
from nanogpt.evaluation.loss import LossEvaluation
from nanogpt.evaluation.scoring import Request, Score, score
from nanogpt.evaluation.statistics import Metric
from nanogpt.evaluation.wikitext import WikiText
from nanogpt.model.gpt import GPT
from nanogpt.tokenizer import Tokenizer


class Benchmark(Protocol):
    """Documents, what is asked about each, and what the answers mean."""

    name: str

    @property
    def documents(self) -> Sequence[object]: ...

    def requests(self, tokenizer: Tokenizer) -> Iterator[Request]:
        """One request for each document. Raises BadInput naming characters that the vocabulary lacks."""
        ...

    def metrics(self, scores: Sequence[Sequence[Score]]) -> dict[str, Metric]:
        """What the scores of all requests say about the model."""
        ...


def load_benchmark(name: BenchmarkName, files: BenchmarkFiles, limit: int | None) -> Benchmark:
    """The first `limit` documents of a benchmark, from the file that `eval.<name>` names or from the hub.

    Raises BadData and BadEnvironment.
    """
    kinds = {"hellaswag": HellaSwag, "lambada": Lambada, "wikitext": WikiText}
    benchmark = kinds[name](getattr(files, name), limit)
    if not benchmark.documents:
        raise BadData(f"eval.{name}={getattr(files, name)}: no documents in it")
    return benchmark


def fingerprint(benchmark: Benchmark) -> str:
    """sha256 over the documents: equal means the same ones in the same order."""
    return hashlib.sha256(json.dumps(benchmark.documents).encode()).hexdigest()


class TaskEvaluation:
    """Evaluates models on one benchmark. Ranks share the work; the result is the same to a bit on any number."""

    def __init__(
        self,
        benchmark: Benchmark,
        tokenizer: Tokenizer,
        compute: Compute,
        group: ProcessGroup | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.benchmark, self.compute, self.group = benchmark, compute, group or ProcessGroup()
        self.batch_tokens = batch_tokens
        try:
            self.requests = list(benchmark.requests(tokenizer))
        except BadInput as error:
            raise BadInput(
                f"{benchmark.name}: {error}; the model can't read this benchmark, one with byte or bpe tokens can"
            ) from None
        for number, one in enumerate(self.requests, 1):
            if not one.continuations or not all(one.continuations):
                raise BadData(f"eval.{benchmark.name}: document {number} has nothing to score: no token to predict")

    def __call__(self, model: GPT, should_stop: Callable[[], bool] = lambda: False) -> dict[str, Metric]:
        """The benchmark's numbers. Raises Stopped as soon as `should_stop`, which all ranks call together, says so."""
        scores = score(model, self.requests, self.compute, self.group, self.batch_tokens, should_stop)
        return self.benchmark.metrics(scores)


class Evaluations:
    """All that a training run evaluates at once, in one row: the loss, then benchmarks as `hellaswag_acc` and so on."""

    def __init__(self, loss: LossEvaluation, tasks: Sequence[TaskEvaluation]) -> None:
        self.loss, self.tasks = loss, tasks

    def __call__(self, model: GPT, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """{name: value}. Raises Stopped as soon as `should_stop`, which all ranks call together, says so."""
        results = self.loss(model, should_stop)
        for task in self.tasks:
            metrics = task(model, should_stop)
            results |= {f"{task.benchmark.name}_{name}": metric.value for name, metric in metrics.items()}
        return results
