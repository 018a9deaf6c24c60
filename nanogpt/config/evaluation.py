"""Keys of evaluation during training and of evaluate.py."""

from typing import Annotated, Literal

from pydantic import Field

from nanogpt.config.types import Count
from nanogpt.fields import free, guarded
from nanogpt.schema import ConfigModel

BenchmarkName = Literal["hellaswag", "lambada", "wikitext"]


class BenchmarkFiles(ConfigModel):
    """Local copies of benchmarks."""

    hellaswag: str | None = free(
        None, "file or folder: six lines an item (.txt, .txt.bz2), .jsonl or .parquet; null: download it"
    )
    lambada: str | None = free(None, "file or folder: .jsonl or .parquet with a column text; null: download it")
    wikitext: str | None = free(
        None, "file or folder: raw text of WikiText-2, .jsonl or .parquet with a column page; null: download it"
    )


class EvalConfig(BenchmarkFiles):
    """Validation during training, always on the same windows, and local files for training.eval_tasks."""

    every: Count = guarded(1000, "steps between evaluations; the last step is always evaluated")
    tokens: Count | None = guarded(
        None, "tokens to evaluate, in windows spread over each split; null: the whole validation split"
    )
    train: bool = guarded(True, "also evaluate the same number of tokens of the training split")
    fit: bool = free(
        False,
        "evaluate a run shorter than eval.every at each quarter; set to true unless eval.every is on the command line",
        earlier=False,
    )

    def interval(self, steps: int) -> int:
        """Return the number of steps between evaluations in a run of `steps`."""
        return max(1, steps // 4) if self.fit and self.every > steps else self.every

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether a run of `steps` is evaluated at `step`: at each interval, at step 0 and at the end."""
        return step % self.interval(steps) == 0 or step == steps


class EvaluationConfig(BenchmarkFiles):
    """Tasks of evaluate.py."""

    tasks: Annotated[tuple[Literal["loss", BenchmarkName], ...], Field(strict=False, min_length=1)] = free(
        ("loss",), "tasks to run, in this order"
    )
    limit: Count | None = free(None, "number of documents of each task, or windows for loss, from the first; null: all")
