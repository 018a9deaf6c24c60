"""The update rule, its learning rates, and how they depend on the model's width."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from nanogpt.config.types import Share
from nanogpt.fields import fixed, guarded
from nanogpt.optim.adamw import ADAMW
from nanogpt.optim.declaration import OptimizerSpec
from nanogpt.optim.muon import MUON
from nanogpt.optim.normuon import NORMUON
from nanogpt.schema import ConfigModel, field_error

Rule = Literal["adamw", "muon", "normuon"]
OPTIMIZERS: dict[Rule, OptimizerSpec] = {"adamw": ADAMW, "muon": MUON, "normuon": NORMUON}
"""Declaration of each optimizer. One that isn't here can't be configured or built."""
EVERY_OPTIMIZERS_KEYS = ("name", "lr", "embedding_lr", "head_lr", "vector_lr", "weight_decay", "grad_clip")
Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class OptimizerConfig(ConfigModel):
    """AdamW (Loshchilov & Hutter 2019); for hidden matrices also Muon (Jordan 2024) and NorMuon (Li et al. 2025)."""

    name: Rule = fixed(
        "adamw", "update rule; muon and normuon update hidden matrices and use adamw for all other parameters"
    )
    lr: Rate = guarded(6e-4, "peak learning rate; with muon or normuon, of the hidden matrices")
    embedding_lr: Rate | None = guarded(None, "peak learning rate of token and position embeddings; null: optimizer.lr")
    head_lr: Rate | None = guarded(None, "peak learning rate of an untied output layer (head); null: optimizer.lr")
    vector_lr: Rate | None = guarded(
        None, "peak learning rate of gains, biases and short convolutions; null: optimizer.lr"
    )
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = guarded(
        (0.9, 0.95), "adamw: decay rates of the two moments", allowed="two numbers in [0, 1)"
    )
    eps: float = guarded(1e-8, "adamw: added to the denominator", gt=0, le=1, allow_inf_nan=False)
    weight_decay: float = guarded(
        0.1,
        "decoupled weight decay, multiplied by the learning rate; only of matrices, with muon only of hidden ones",
        ge=0,
        le=10,
        allow_inf_nan=False,
    )
    grad_clip: float = guarded(
        1.0, "clip the global gradient norm at this value; 0: no clipping", ge=0, allow_inf_nan=False
    )
    momentum: Share = guarded(0.95, "muon: momentum, the decay rate of the gradient's running mean")
    momentum_start: Share = guarded(0.85, "muon: momentum at the first step, if momentum_warmup_steps > 0")
    momentum_warmup_steps: int = guarded(0, "muon: steps from momentum_start to momentum", ge=0, le=2**53)
    ns_steps: int = guarded(5, "muon: Newton-Schulz iterations per update", ge=1, le=10, was="orthogonal_steps")
    cautious_decay: bool = guarded(False, "muon: decay only weights that the update also shrinks")
    row_beta: Share = guarded(0.95, "normuon: decay rate of each row's mean squared update")

    @model_validator(mode="after")
    def _check_keys_of_rule(self) -> Self:
        for key, field in type(self).model_fields.items():
            if key in EVERY_OPTIMIZERS_KEYS or key in OPTIMIZERS[self.name].keys:
                continue
            if (value := getattr(self, key)) != field.default:
                owners = [name for name, declaration in OPTIMIZERS.items() if key in declaration.keys]
                why = f"is {owners[0]}'s; give optimizer={owners[0]}" if owners else "no optimizer reads it"
                raise field_error(f"optimizer.{key}", value, why)
        return self


class ParametrizationConfig(ConfigModel):
    """Scaling of initialization and learning rates with the width (Yang et al. 2022, Tensor Programs V)."""

    name: Literal["standard", "mup"] = fixed(
        "standard", "standard: values as given at any width; mup: as given at base_width, rescaled for other widths"
    )
    base_width: int = fixed(128, "mup: the model.n_embd for which the learning rates were tuned", ge=1, le=65_536)

    def width_multiplier(self, n_embd: int) -> float:
        """Return the width as a multiple of the base width; 1 in the standard parametrization."""
        return {"standard": 1.0, "mup": n_embd / self.base_width}[self.name]
