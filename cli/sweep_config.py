"""Keys of a sweep (`-m`): which points there are (`sweep.…`), and how far each is trained (`hydra/sweeper=…`).

They are not part of a run's config or identity.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from nanogpt.config import METRIC_HELP, TOLERANCE_HELP, ChosenMetric, Gpu
from nanogpt.fields import free
from nanogpt.schema import ConfigModel, field_error

CONDITION = re.compile(r"([A-Za-z_][\w./]*)(>=|<=|!=|=|>|<)(\S+)")


def check_conditions(text: str) -> str:
    """Raise PydanticCustomError unless this is comparisons of keys with values, separated by blanks."""
    if text.split() and all(CONDITION.fullmatch(word) for word in text.split()):
        return text
    raise PydanticCustomError("form", "comparisons separated by blanks, e.g. 'optimizer.lr>=1e-2 model.dropout=0'")


def check_grid(values: dict[str, Any]) -> dict[str, Any]:
    """Raise PydanticCustomError unless every key has a list of values, or values as on a command line."""
    if all(
        value not in ([], (), "") and isinstance(value, list | tuple | str | int | float) for value in values.values()
    ):
        return values
    raise PydanticCustomError("form", "{key: [value, value]}, with one value at least for each key")


def check_points(points: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Raise PydanticCustomError for a point without keys."""
    if all(points):
        return points
    raise PydanticCustomError("form", "a list of {key: value}, none of them empty")


def wrap_single_group(value: Any) -> Any:
    """Return `[[a,b]]` for `[a,b]`, the usual case of one group of zipped keys."""
    flat = isinstance(value, list) and value and not any(isinstance(element, list) for element in value)  # pyright: ignore[reportUnknownVariableType]
    return [value] if flat else value  # pyright: ignore[reportUnknownVariableType]


def parse_precision(until: str | None) -> float | None:
    """Return the number of `precision=0.01`; None for other texts."""
    match = re.fullmatch(r"precision=([0-9.]+(?:e-?[0-9]+)?)", until or "")
    try:
        return float(match[1]) if match and 0 < float(match[1]) < math.inf else None
    except ValueError:  # 0.0.1
        return None


def quote_precision(override: str) -> str:
    """Return `sweep.until=precision=0.01` with the quotes that Hydra needs around a value with '='."""
    return re.sub(r"^sweep\.until=(precision=[^'\"]*)$", r"sweep.until='\1'", override)


def check_until(until: str) -> str:
    """Raise PydanticCustomError unless seeds can be added until this is true."""
    if until == "decided" or parse_precision(until) is not None:
        return until
    raise PydanticCustomError("form", "decided, or precision=0.01 with any number above 0")


Keys = Annotated[tuple[str, ...], Field(strict=False, min_length=2)]
Conditions = Annotated[str, AfterValidator(check_conditions)]


class SweepConfig(ConfigModel):
    """Points of a sweep."""

    grid: Annotated[dict[str, Any], AfterValidator(check_grid)] = free(
        {}, "swept keys of a file in conf/experiment, {key: [values]}; keys on the command line replace them"
    )
    points: Annotated[tuple[dict[str, Any], ...], Field(strict=False), AfterValidator(check_points)] = free(
        (), "list of points, combined with the grid, e.g. [{optimizer.lr:1e-3,model:tiny},{optimizer.lr:1e-4}]"
    )
    zip: Annotated[tuple[Keys, ...], Field(strict=False), BeforeValidator(wrap_single_group)] = free(
        (),
        "keys combined pairwise, not in all combinations, e.g. [optimizer.lr,model.dropout]; or several lists",
        allowed="a list of keys",
    )
    exclude: Annotated[tuple[Conditions, ...], Field(strict=False)] = free(
        (), "exclude points for which all comparisons of a text hold, e.g. ['optimizer.lr>=1e-2 model.dropout=0']"
    )
    until: Annotated[str, AfterValidator(check_until)] | None = free(
        None,
        "train more and more of the seeds of settings that may be the best. decided: until the others are worse, "
        "equivalent or unlikely to be told apart by all seeds; precision=0.01: until differences from the best are "
        "known to ± 0.01; null: train all points",
        allowed="decided or precision=0.01",
    )
    tolerance: float = free(0.0, f"with sweep.until: {TOLERANCE_HELP}", ge=0)
    fused: Annotated[int, Field(ge=2, le=1024)] | Literal["auto"] | None = free(
        None,
        "number of points that this process trains as one network; they may differ in optimizer, schedule, "
        "training.seed and model.dropout; auto: measure whether that, one process per core, or one point after the "
        "other is fastest; null: one after the other",
    )
    retry: Literal["failed"] | None = free(None, "failed: train failed and diverged points again; null: list them")
    gpu: Gpu | None = free(
        None, "GPU model to assume when time and memory are estimated before a sweep starts; null: none"
    )

    @property
    def models_at_once(self) -> int:
        """Number of points that this process trains as one network; 1: one after the other."""
        return self.fused if isinstance(self.fused, int) else 1

    @model_validator(mode="after")
    def _check_tolerance(self) -> Self:
        if self.tolerance and self.until is None:
            raise field_error("tolerance", self.tolerance, "is for sweep.until=decided")
        return self


class AllPoints(ConfigModel):
    """Every point is trained to its end."""

    method: Literal["all"] = free("all", "sweep method")


class Halving(ConfigModel):
    """Synchronous successive halving (Jamieson & Talwalkar 2016).

    In each rung all remaining points are trained to the same fraction of their steps; the best 1/eta of them continue.
    The learning rate follows the schedule of the whole run.
    """

    method: Literal["halving"] = free("halving", "sweep method")
    eta: int = free(
        3, "each rung keeps 1/eta of the points (rounded up) and trains them eta times as long", ge=2, le=100
    )
    rungs: int = free(3, "number of rungs; the last one is the end of the run", ge=2, le=20)
    metric: ChosenMetric = free("val_loss", f"metric that decides which points continue; {METRIC_HELP}")


class Search(ConfigModel):
    """Search with Optuna: each trial is chosen by the results of earlier ones and trained to its end."""

    method: Literal["optuna"] = free("optuna", "sweep method")
    trials: int = free(20, "number of trials; a higher number continues an existing search", ge=1, le=10_000)
    at_once: int = free(1, "trials that are chosen and trained together", ge=1, le=1000)
    sampler: Literal["tpe", "random"] = free(
        "tpe", "tpe: ten random trials, then others near the best ones; random: all random"
    )
    seed: int = free(0, "random seed of the sampler", ge=0, le=2**31 - 1)
    metric: ChosenMetric = free("val_loss", f"metric to minimize; {METRIC_HELP}")


class Asha(ConfigModel):
    """Asynchronous successive halving (ASHA, Li et al. 2018), or median stopping.

    A run pauses at each rung and continues as soon as its result is among the best there so far. Slots without such a
    run train new points, then the best paused runs, until the best are trained to the end.
    """

    method: Literal["asha"] = free("asha", "sweep method")
    eta: int = free(3, "each rung is eta times as long as the one before", ge=2, le=100)
    rungs: int = free(3, "number of rungs; the last one is the end of the run", ge=2, le=20)
    stop: Literal["halving", "median"] = free(
        "halving", "halving: the best 1/eta at a rung continue; median: those not worse than the median there"
    )
    slots: int | None = free(
        None, "runs in progress at once; null: 1 without jobs, else as many as the launcher runs at once", ge=1, le=1000
    )
    backfill: bool = free(
        True,
        "use slots that nothing else needs for further seeds of runs that ended, then for the best paused runs; "
        "false: leave these slots empty",
    )
    final_seeds: int = free(
        1, "seeds of the points that are trained to the end; the best is chosen by their mean", ge=1, le=100
    )
    sampler: Literal["grid", "tpe", "random"] = free(
        "grid", "grid: every point of the grid; tpe, random: Optuna's samplers choose points, also from intervals"
    )
    trials: int = free(20, "number of points that a sampler chooses; a higher number continues", ge=1, le=10_000)
    seed: int = free(0, "random seed of the sampler", ge=0, le=2**31 - 1)
    metric: ChosenMetric = free("val_loss", f"metric that decides which points continue; {METRIC_HELP}")

    @property
    def search(self) -> Search | None:
        """The search that chooses points; None for a grid."""
        return None if self.sampler == "grid" else Search(trials=self.trials, sampler=self.sampler, seed=self.seed)


Sweeper = AllPoints | Halving | Search | Asha
SWEEPERS: dict[str, type[Sweeper]] = {"all": AllPoints, "halving": Halving, "optuna": Search, "asha": Asha}
