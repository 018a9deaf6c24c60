"""Evaluation while training, and the benchmarks."""

from typing import Annotated, Literal

from pydantic import Field

from nanogpt.config.types import Count
from nanogpt.schema import ConfigModel, free, guarded

BenchmarkName = Literal["hellaswag", "lambada", "wikitext"]


class BenchmarkFiles(ConfigModel):
    """Local copies of benchmarks."""

    hellaswag: str | None = free(
        None, "file or folder: six lines an item (.txt, .txt.bz2), .jsonl or .parquet; null: the hub"
    )
    lambada: str | None = free(None, "file or folder: .jsonl or .parquet with a column text; null: the hub")
    wikitext: str | None = free(
        None, "file or folder: raw text of WikiText-2, .jsonl or .parquet with a column page; null: the hub"
    )


class EvalConfig(BenchmarkFiles):
    """Evaluation on windows that never change, and where the documents of training.eval_tasks are."""

    every: Count = guarded(1000, "steps between evaluations; the last step is always evaluated")
    tokens: Count | None = guarded(
        None, "tokens per evaluation of each split, in windows spread over it; null: the whole validation split"
    )
    train: bool = guarded(True, "also evaluate as many tokens of the training split")
    fit: bool = free(
        False,
        "evaluate a run shorter than eval.every four times; true unless the command line sets eval.every",
        earlier=False,
    )

    def interval(self, steps: int) -> int:
        """Return the number of steps between evaluations in a run of `steps`."""
        return max(1, steps // 4) if self.fit and self.every > steps else self.every

    def is_due(self, step: int, steps: int) -> bool:
        """Whether a run of `steps` is evaluated at `step`: at every interval, at step 0 and at the end."""
        return step % self.interval(steps) == 0 or step == steps


class EvaluationConfig(BenchmarkFiles):
    """What evaluate.py finds out about a model."""

    tasks: Annotated[tuple[Literal["loss", BenchmarkName], ...], Field(strict=False, min_length=1)] = free(
        ("loss",), "tasks, in this order"
    )
    limit: Count | None = free(None, "number of documents of each task, or windows for loss, from the first; null: all")
