"""What `-m` takes: how the points of a sweep come about (`sweep.…`), and how far each is trained (`hydra/sweeper=…`).

None of it is part of a run's identity, and none of it gets into a run's config.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from nanogpt.config import METRIC_HELP, ChosenMetric, Gpu
from nanogpt.fields import free
from nanogpt.schema import ConfigModel

CONDITION = re.compile(r"([A-Za-z_][\w./]*)(>=|<=|!=|=|>|<)(\S+)")


def check_conditions(text: str) -> str:
    """Comparisons of keys with values, separated by blanks."""
    if text.split() and all(CONDITION.fullmatch(word) for word in text.split()):
        return text
    raise PydanticCustomError("form", "comparisons separated by blanks, e.g. 'optimizer.lr>=1e-2 model.dropout=0'")


def check_grid(values: dict[str, Any]) -> dict[str, Any]:
    """Keys with a list of values, or values as on a command line."""
    if all(
        value not in ([], (), "") and isinstance(value, list | tuple | str | int | float) for value in values.values()
    ):
        return values
    raise PydanticCustomError("form", "{key: [value, value]}, with one value at least for each key")


def check_points(points: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Points, each as {key: value}."""
    if all(points):
        return points
    raise PydanticCustomError("form", "a list of {key: value}, none of them empty")


def wrap_single_group(value: Any) -> Any:
    """`[a,b]` as `[[a,b]]`: mostly there is one group of keys that go together."""
    flat = isinstance(value, list) and value and not any(isinstance(one, list) for one in value)  # pyright: ignore[reportUnknownVariableType]
    return [value] if flat else value  # pyright: ignore[reportUnknownVariableType]


Keys = Annotated[tuple[str, ...], Field(strict=False, min_length=2)]
Conditions = Annotated[str, AfterValidator(check_conditions)]


class SweepConfig(ConfigModel):
    """Which points there are, and which of them are trained again."""

    grid: Annotated[dict[str, Any], AfterValidator(check_grid)] = free(
        {}, "for files of conf/experiment: {key: [values]}; a key on the command line replaces the file's"
    )
    points: Annotated[tuple[dict[str, Any], ...], Field(strict=False), AfterValidator(check_points)] = free(
        (), "a list of points, e.g. [{optimizer.lr:1e-3,model:tiny},{optimizer.lr:1e-4,model:gpt2}]; times the grid"
    )
    zip: Annotated[tuple[Keys, ...], Field(strict=False), BeforeValidator(wrap_single_group)] = free(
        (),
        "keys whose values go in pairs, e.g. [optimizer.lr,batch_tokens], or several such lists",
        allowed="a list of keys",
    )
    exclude: Annotated[tuple[Conditions, ...], Field(strict=False)] = free(
        (), "exclude points for which all comparisons of a text hold, e.g. ['optimizer.lr>=1e-2 model.dropout=0']"
    )
    retry: Literal["failed"] | None = free(None, "failed: train failed and diverged points again; null: only list them")
    gpu: Gpu | None = free(
        None, "GPU model assumed when time and memory are estimated before the sweep starts; null: none is assumed"
    )


class AllPoints(ConfigModel):
    """Every point to its end."""

    method: Literal["all"] = free("all", "sweep method")


class Halving(ConfigModel):
    """Synchronous successive halving (Jamieson & Talwalkar 2016): in every rung all points that are left are trained to
    the same share of their steps, and the best of them, one in eta, to the next; learning rates follow the schedule of
    the whole run from the start.
    """

    method: Literal["halving"] = free("halving", "sweep method")
    eta: int = free(
        3, "each rung keeps 1/eta of the points (rounded up) and trains them eta times as long", ge=2, le=100
    )
    rungs: int = free(3, "number of rungs; the last one is the end of the run", ge=2, le=20)
    metric: ChosenMetric = free("val_loss", f"what decides who goes on: {METRIC_HELP}")


class Search(ConfigModel):
    """Points that are chosen one after the other by what those before came to, each trained to its end."""

    method: Literal["optuna"] = free("optuna", "sweep method")
    trials: int = free(20, "number of trials; a higher number continues an existing search", ge=1, le=10_000)
    at_once: int = free(1, "trials chosen and trained together before the next are chosen", ge=1, le=1000)
    sampler: Literal["tpe", "random"] = free(
        "tpe", "tpe: ten random trials, then near the best ones; random: all random"
    )
    seed: int = free(0, "random seed of the sampler", ge=0, le=2**31 - 1)
    metric: ChosenMetric = free("val_loss", f"what is minimised: {METRIC_HELP}")


Sweeper = AllPoints | Halving | Search
SWEEPERS: dict[str, type[Sweeper]] = {"all": AllPoints, "halving": Halving, "optuna": Search}
