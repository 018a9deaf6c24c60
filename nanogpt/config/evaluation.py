"""Benchmarks: which ones, on which documents."""

from typing import Annotated, Literal

from pydantic import Field

from nanogpt.config.fields import Count
from nanogpt.schema import Section, free

BenchmarkName = Literal["hellaswag", "lambada", "wikitext"]


class BenchmarkFiles(Section):
    """Local copies of benchmarks."""

    hellaswag: str | None = free(
        None, "file or folder: six lines an item (.txt, .txt.bz2), .jsonl or .parquet; null: the hub"
    )
    lambada: str | None = free(None, "file or folder: .jsonl or .parquet with a column text; null: the hub")
    wikitext: str | None = free(
        None, "file or folder: raw text of WikiText-2, .jsonl or .parquet with a column page; null: the hub"
    )


class EvaluationConfig(BenchmarkFiles):
    """What evaluate.py finds out about a model."""

    tasks: Annotated[tuple[Literal["loss", BenchmarkName], ...], Field(strict=False, min_length=1)] = free(
        ("loss",), "what is evaluated, in this order"
    )
    limit: Count | None = free(None, "only the first documents of each task, of loss so many windows; null: all")
