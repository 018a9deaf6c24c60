"""The batch, the horizon and the seed of a training run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from nanogpt.config.evaluation import BenchmarkName
from nanogpt.config.types import Count
from nanogpt.fields import fixed, free, guarded
from nanogpt.schema import ConfigModel, field_error


class TrainingConfig(ConfigModel):
    """Batch size, length and seed of a run. Exactly one of steps, tokens, tokens_per_param and flops is set."""

    batch_tokens: int = guarded(
        491_520, "tokens per optimizer step over all ranks, a multiple of model.block_size", ge=1, le=2**40
    )
    steps: int | None = guarded(
        None, "length of the run in optimizer steps; null: set by tokens, tokens_per_param or flops", ge=0, le=2**53
    )
    tokens: Count | None = guarded(None, "length of the run in tokens, rounded up to whole steps; null: not used")
    tokens_per_param: float | None = guarded(
        None, "length of the run in tokens per parameter (Chinchilla-optimal: 20); null: not used", gt=0, le=1e6
    )
    flops: float | None = guarded(
        None,
        "length of the run in FLOPs (6 N + 12 L C T per token), rounded up to whole steps; null: not used",
        gt=0,
        le=1e30,
    )
    seed: int = fixed(1337, "random seed of initialization, data order and dropout", ge=0, lt=2**63)
    eval_tasks: Annotated[tuple[BenchmarkName, ...], Field(strict=False)] = guarded(
        (), "benchmarks to run at each evaluation, e.g. [hellaswag]; eval.hellaswag etc. name local copies"
    )
    eval_limit: Count | None = guarded(
        None, "number of documents of each benchmark in eval_tasks, from the first; null: all"
    )
    on_nonfinite: Literal["halt", "skip"] = free(
        "halt", "when a loss or gradient is not finite: end the run, or skip the update"
    )
    max_skips: int = free(
        10, "on_nonfinite=skip: end the run after this many skipped steps within 1000 steps", ge=1, le=1000
    )

    @model_validator(mode="after")
    def _check_horizon(self) -> Self:
        names = ("steps", "tokens", "tokens_per_param", "flops")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            keys = ", ".join(f"training.{name}" for name in names)
            if not given:
                raise field_error("training.steps", None, f"nothing says how long to train; give one of {keys}")
            why = f"give exactly one of {keys}; set the others to null"
            raise field_error(f"training.{given[-1]}", getattr(self, given[-1]), why)
        return self
