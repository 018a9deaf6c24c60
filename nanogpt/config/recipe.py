"""How weights are trained: update rule, learning rate, batch and horizon, evaluation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from nanogpt.config.evaluation import BenchmarkFiles, BenchmarkName
from nanogpt.config.fields import Count, Share
from nanogpt.optim.adamw import ADAMW
from nanogpt.optim.declaration import Declaration
from nanogpt.optim.muon import MUON
from nanogpt.optim.normuon import NORMUON
from nanogpt.schema import Section, fixed, free, guarded, refuse

Rule = Literal["adamw", "muon", "normuon"]
OPTIMIZERS: dict[Rule, Declaration] = {"adamw": ADAMW, "muon": MUON, "normuon": NORMUON}
"""What each optimizer is. One that isn't here can't be configured or built."""
EVERY_OPTIMIZERS_KEYS = ("name", "lr", "embedding_lr", "head_lr", "vector_lr", "weight_decay", "grad_clip")
Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019); for hidden matrices also Muon (Jordan 2024) and NorMuon (Li et al. 2025)."""

    name: Rule = fixed("adamw", "update rule; muon and normuon are for hidden matrices, all else is then adamw's")
    lr: Rate = guarded(6e-4, "peak learning rate; muon: of hidden matrices")
    embedding_lr: Rate | None = guarded(None, "peak for token and position embeddings; null: lr")
    head_lr: Rate | None = guarded(None, "peak for a head that is not tied to the embedding; null: lr")
    vector_lr: Rate | None = guarded(None, "peak for gains, biases and short convolutions; null: lr")
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = guarded((0.9, 0.95), "adamw: decay of the two moments")
    eps: float = guarded(1e-8, "added to the root of the second moment", gt=0, le=1, allow_inf_nan=False)
    weight_decay: float = guarded(
        0.1,
        "decoupled, per unit of learning rate; never of vectors, muon: of hidden matrices alone",
        ge=0,
        le=10,
        allow_inf_nan=False,
    )
    grad_clip: float = guarded(1.0, "largest global gradient norm; 0 turns clipping off", ge=0, allow_inf_nan=False)
    momentum: Share = guarded(0.95, "muon: decay of the gradient's running mean")
    momentum_start: Share = guarded(0.85, "muon: momentum of the first step, if it is warmed up")
    momentum_warmup_steps: int = guarded(0, "muon: steps from momentum_start to momentum", ge=0, le=2**53)
    orthogonal_steps: int = guarded(5, "muon: iterations that make an update orthogonal", ge=1, le=10)
    cautious_decay: bool = guarded(False, "muon: decay only weights that the update makes smaller too")
    row_beta: Share = guarded(0.95, "normuon: decay of the mean square of each row's updates")

    @model_validator(mode="after")
    def _keys_are_this_rules(self) -> Self:
        for key, field in type(self).model_fields.items():
            if key in EVERY_OPTIMIZERS_KEYS or key in OPTIMIZERS[self.name].keys:
                continue
            if (value := getattr(self, key)) != field.default:
                owners = [name for name, declaration in OPTIMIZERS.items() if key in declaration.keys]
                why = f"is {owners[0]}'s; give optimizer={owners[0]}" if owners else "no optimizer reads it"
                raise refuse(f"optimizer.{key}", value, why)
        return self


class ScheduleConfig(Section):
    """Learning rate as a function of the step alone."""

    name: Literal["cosine", "linear", "constant", "wsd"] = guarded("cosine", "shape after warm-up")
    warmup_steps: int = guarded(0, "steps of linear warm-up", ge=0, le=2**53)
    decay_steps: Count | None = guarded(None, "step at which the lowest rate is reached; null: the last")
    decay_fraction: float = guarded(0.2, "wsd: share of the steps, at the end, in which the rate falls", gt=0, le=1)
    min_lr_ratio: float = guarded(0.1, "lowest learning rate as a share of optimizer.lr", ge=0, le=1)


class ParametrizationConfig(Section):
    """How initialisation and learning rates depend on the model's width (Yang et al. 2022, Tensor Programs V)."""

    name: Literal["standard", "mup"] = fixed(
        "standard", "as given whatever the width; or as given at base_width, so that the best ones stay the best"
    )
    base_width: int = fixed(128, "mup: the model.n_embd that optimizer's rates are for", ge=1, le=65_536)

    def width(self, n_embd: int) -> float:
        """How many times wider a model is than the one its recipe is for."""
        return {"standard": 1.0, "mup": n_embd / self.base_width}[self.name]


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
                raise refuse("training.steps", None, f"nothing says how long to train; give one of {keys}")
            why = f"give exactly one of {keys}; set the others to null"
            raise refuse(f"training.{given[-1]}", getattr(self, given[-1]), why)
        return self


class EvalConfig(BenchmarkFiles):
    """Evaluation on windows that never change, and where the documents of training.eval_tasks are."""

    every: Count = guarded(1000, "steps between evaluations; the last step is always evaluated")
    tokens: Count | None = guarded(
        None, "tokens of each split, in windows spread over it; null: the whole validation split"
    )
    train: bool = guarded(True, "evaluate as many tokens of the training split too")
    fit: bool = free(
        False, "evaluate a run shorter than eval.every four times; true unless eval.every is typed", earlier=False
    )

    def interval(self, steps: int) -> int:
        """Return the number of steps between evaluations in a run of `steps`."""
        return max(1, steps // 4) if self.fit and self.every > steps else self.every

    def due(self, step: int, steps: int) -> bool:
        """Whether a run of `steps` is evaluated at `step`: at every interval, at step 0 and at the end."""
        return step % self.interval(steps) == 0 or step == steps
