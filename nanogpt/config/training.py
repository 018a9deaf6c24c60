"""The batch, the horizon and the seed of a training run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from nanogpt.config.evaluation import BenchmarkName
from nanogpt.config.types import Count
from nanogpt.schema import ConfigModel, field_error, fixed, free, guarded


class TrainingConfig(ConfigModel):
    """How much to train, on which batches. Exactly one of steps, tokens, tokens_per_param and flops is set."""

    batch_tokens: int = guarded(
        491_520, "tokens per optimizer step over all ranks, a multiple of model.block_size", ge=1, le=2**40
    )
    steps: int | None = guarded(None, "horizon in optimizer steps", ge=0, le=2**53)
    tokens: Count | None = guarded(None, "horizon in tokens, rounded up to whole steps")
    tokens_per_param: float | None = guarded(None, "horizon in tokens per parameter; 20 is Chinchilla's", gt=0, le=1e6)
    flops: float | None = guarded(
        None, "horizon in floating-point operations, rounded up to whole steps; 6 N + 12 L C T a token", gt=0, le=1e30
    )
    seed: int = fixed(1337, "of initialisation, data order and dropout", ge=0, lt=2**63)
    eval_tasks: Annotated[tuple[BenchmarkName, ...], Field(strict=False)] = guarded(
        (), "benchmarks at each evaluation, e.g. [hellaswag]; their files: eval.hellaswag and so on"
    )
    eval_limit: Count | None = guarded(None, "only the first documents of each of eval_tasks; null: all")
    on_nonfinite: Literal["halt", "skip"] = free("halt", "what a loss or gradient that isn't finite does to the run")
    max_skips: int = free(10, "on_nonfinite=skip: steps skipped in any 1000 before the run ends", ge=1, le=1000)

    @model_validator(mode="after")
    def _one_horizon(self) -> Self:
        names = ("steps", "tokens", "tokens_per_param", "flops")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            keys = ", ".join(f"training.{name}" for name in names)
            if not given:
                raise field_error("training.steps", None, f"nothing says how long to train; give one of {keys}")
            why = f"give exactly one of {keys}; set the others to null"
            raise field_error(f"training.{given[-1]}", getattr(self, given[-1]), why)
        return self
