"""The benchmarks by name, and their evaluation. Documents are read and encoded once, for any number of models."""

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
    """Documents, the requests to score for each, and the metrics of the scores."""

    name: str

    @property
    def documents(self) -> Sequence[object]: ...

    def requests(self, tokenizer: Tokenizer) -> Iterator[Request]:
        """Yield a request per document. Raises BadInput naming characters that the vocabulary lacks."""
        ...

    def metrics(self, scores: Sequence[Sequence[Score]]) -> dict[str, Metric]:
        """Return the metrics of the scores of all requests."""
        ...


def load_benchmark(name: BenchmarkName, files: BenchmarkFiles, limit: int | None) -> Benchmark:
    """Read the first `limit` documents of a benchmark, from the file `eval.<name>` or from the hub.

    Raises BadData and BadEnvironment.
    """
    kinds = {"hellaswag": HellaSwag, "lambada": Lambada, "wikitext": WikiText}
    benchmark = kinds[name](getattr(files, name), limit)
    if not benchmark.documents:
        raise BadData(f"eval.{name}={getattr(files, name)}: no documents in it")
    return benchmark


def fingerprint(benchmark: Benchmark) -> str:
    """Return the sha256 of the documents, in order."""
    return hashlib.sha256(json.dumps(benchmark.documents).encode()).hexdigest()


class TaskEvaluation:
    """Evaluates models on a benchmark. Ranks share the work; the result is bitwise the same on any number of them."""

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
            raise BadInput(f"{benchmark.name}: {error}; this benchmark needs a model with byte or bpe tokens") from None
        for number, request in enumerate(self.requests, 1):
            if not request.continuations or not all(request.continuations):
                raise BadData(f"eval.{benchmark.name}: document {number} has no token to predict")

    def __call__(self, model: GPT, should_stop: Callable[[], bool] = lambda: False) -> dict[str, Metric]:
        """Return the benchmark's metrics. Raises Stopped once `should_stop`, a collective, returns True."""
        scores = score(model, self.requests, self.compute, self.group, self.batch_tokens, should_stop)
        return self.benchmark.metrics(scores)


class Evaluations:
    """The evaluations of a training run, in one row: the loss, then benchmarks as `hellaswag_acc`, …"""

    def __init__(self, loss: LossEvaluation, tasks: Sequence[TaskEvaluation]) -> None:
        self.loss, self.tasks = loss, tasks

    def __call__(self, model: GPT, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Return {name: value}. Raises Stopped once `should_stop`, a collective, returns True."""
        results = self.loss(model, should_stop)
        for task in self.tasks:
            metrics = task(model, should_stop)
            results |= {f"{task.benchmark.name}_{name}": metric.value for name, metric in metrics.items()}
        return results
