"""How weights are trained: update rule, learning rate, batch and horizon, evaluation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from nanogpt.config.fields import Count, Share
from nanogpt.schema import Section, fixed, free, guarded, refuse


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019): decay on matrices, none on vectors."""

    name: Literal["adamw"] = fixed("adamw", "update rule")
    lr: float = guarded(6e-4, "peak learning rate", gt=0, le=10, allow_inf_nan=False)
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = guarded((0.9, 0.95), "decay of the two moments")
    eps: float = guarded(1e-8, "added to the root of the second moment", gt=0, le=1, allow_inf_nan=False)
    weight_decay: float = guarded(0.1, "decoupled, per unit of learning rate", ge=0, le=10, allow_inf_nan=False)
    grad_clip: float = guarded(1.0, "largest global gradient norm; 0 turns clipping off", ge=0, allow_inf_nan=False)


class ScheduleConfig(Section):
    """Learning rate as a function of the step alone."""

    name: Literal["cosine", "linear", "constant", "wsd"] = guarded("cosine", "shape after warm-up")
    warmup_steps: int = guarded(0, "steps of linear warm-up", ge=0, le=2**53)
    decay_steps: Count | None = guarded(None, "step at which the lowest rate is reached; null: the last")
    decay_fraction: float = guarded(0.2, "wsd: share of the steps, at the end, in which the rate falls", gt=0, le=1)
    min_lr_ratio: float = guarded(0.1, "lowest learning rate as a share of optimizer.lr", ge=0, le=1)


class TrainingConfig(Section):
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
    on_nonfinite: Literal["halt", "skip"] = free("halt", "what a loss or gradient that isn't finite does to the run")
    max_skips: int = free(10, "on_nonfinite=skip: steps skipped in any 1000 before the run ends", ge=1, le=1000)

    @model_validator(mode="after")
    def _one_horizon(self) -> Self:
        names = ("steps", "tokens", "tokens_per_param", "flops")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            keys = ", ".join(f"training.{name}" for name in names)
            why = f"give exactly one of {keys}; set the others to null"
            raise refuse("training." + (given[-1] if given else "steps"), given and getattr(self, given[-1]), why)
        return self


class EvalConfig(Section):
    """Evaluation on windows that never change."""

    every: Count = guarded(1000, "steps between evaluations; the last step is always evaluated")
    tokens: Count | None = guarded(
        None, "tokens of each split, in windows spread over it; null: the whole validation split"
    )
    train: bool = guarded(True, "evaluate as many tokens of the training split too")
