"""Keys of the commands that plan trainings: sizing, scaling, coordinates."""

from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from nanogpt.config.hardware import Gpu
from nanogpt.config.train import TrainConfig
from nanogpt.config.types import Count
from nanogpt.fields import free
from nanogpt.json_output import FORMAT_HELP, OutputFormat
from nanogpt.schema import ConfigModel, field_error


class SizingSettings(ConfigModel):
    """Assumptions about GPUs."""

    gpu: Gpu | None = free(None, "GPU model to plan for; null: all known models")
    mfu: float = free(0.4, "assumed model FLOPs utilization: fraction of the GPU's peak FLOP/s", gt=0, le=1)
    price: float | None = free(None, "dollars per hour of one sizing.gpu; null: show no costs", gt=0, le=1e6)

    @model_validator(mode="after")
    def _check_price(self) -> Self:
        if self.price is not None and self.gpu is None:
            raise field_error("sizing.price", self.price, "needs a GPU model, e.g. sizing.gpu=h100")
        return self


class SizingConfig(TrainConfig):
    """A training run to plan, not to start: parameters, FLOPs, memory, time and cost on known GPUs."""

    sizing: SizingSettings = free(SizingSettings(), "assumptions")

    @property
    def prints_json(self) -> bool:
        return True


class CoordinatesSettings(ConfigModel):
    """Widths to compare, and the length of each training."""

    widths: Annotated[tuple[Count, ...], Field(strict=False, min_length=2)] = free(
        (64, 128, 256, 512), "values of model.n_embd to compare, multiples of the head size"
    )
    steps: Count = free(5, "optimizer steps per width, all on the same random tokens")
    sequences: Count = free(8, "sequences per step")
    out: str = free("coordinates.png", "image file to write", min_length=1)


class CoordinatesConfig(TrainConfig):
    """A recipe to train for a few steps at several widths, to see how far activations move."""

    coordinates: CoordinatesSettings = free(CoordinatesSettings(), "widths and steps")

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        size = self.model.head_size
        for width in self.coordinates.widths:
            if width % size:
                why = f"must be multiples of {size}, the size of a head (model.n_embd / model.n_head)"
                raise field_error("coordinates.widths", width, why)
        return self


class LawConfig(ConfigModel):
    """Loss of N parameters after D tokens, E + A / N^alpha + B / D^beta nats per token.

    The defaults are those of Hoffmann et al. 2022, approach 3.
    """

    E: float = free(1.69, "irreducible loss, nats per token", ge=0, le=100)
    A: float = free(406.4, "coefficient of the term in N", gt=0, le=1e100)
    B: float = free(410.7, "coefficient of the term in D", gt=0, le=1e100)
    alpha: float = free(0.34, "exponent of N", gt=0, le=10)
    beta: float = free(0.28, "exponent of D", gt=0, le=10)


class ScalingConfig(ConfigModel):
    """A compute budget to spend by a scaling law, published or fitted to your own runs."""

    budget: float | None = free(
        None, "FLOPs to spend; null: a table from 1e17 to 1e26, or with runs 10 times the largest run", gt=0, le=1e40
    )
    n_params: float | None = free(
        None, "model size for which to print the optimal tokens and FLOPs; null: none", ge=1, le=1e20
    )
    runs: str | None = free(
        None, "glob of finished runs to fit a law to, e.g. 'runs/isoflop*'; null: none", min_length=1
    )
    out: str = free(".", "runs: folder for scaling.json and scaling.png, .pdf and .svg", min_length=1)
    bootstrap: int = free(200, "runs: bootstrap resamples for the 90 % intervals", ge=20, le=100_000)
    seed: int = free(1337, "runs: random seed of the resamples", ge=0, lt=2**63)
    law: LawConfig = free(LawConfig(), "constants of the scaling law")
    format: OutputFormat = free("text", FORMAT_HELP)

    @model_validator(mode="after")
    def _check_question(self) -> Self:
        if self.n_params is not None and (self.budget is not None or self.runs is not None):
            raise field_error("n_params", self.n_params, "can't be combined with budget or runs")
        return self
