"""Reference curves: validation losses of one setting over seeds, and the band that another run of it stays inside.

A file `reference.json` of a study has one curve for each of its settings with four seeds or more; reference_curves/ has
those of some experiments.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from nanogpt.comparability import agree_in_nats
from nanogpt.config import EvalConfig, TrainConfig
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.files import list_entries, read_json_bytes
from nanogpt.measurement import Measurement, read_recorded, to_dict
from nanogpt.schema import (
    ConfigModel,
    change_policy,
    from_stored,
    identity_fields,
    iter_fields,
    iter_values,
    signature,
)
from nanogpt.statistics import mean, t_quantile, variance

PACKAGED = Path(__file__).with_name("reference_curves")
FILE = "reference.json"
MIN_SEEDS = 4
BAND_LEVEL = 0.99  # probability that a run with another seed is inside at all steps
Curve = Mapping[int, float]
"""Validation loss at each evaluated step of one run."""


class Reference(ConfigModel):
    """Curve of one setting."""

    name: str
    config: TrainConfig
    measurement: dict[str, Any]
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=MIN_SEEDS)]
    steps: Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
    mean: Annotated[tuple[float, ...], Field(strict=False)]
    deviation: Annotated[tuple[float, ...], Field(strict=False)]
    """Standard deviation over seeds at each step."""
    made: dict[str, Any]
    """Commit, packages and device of the first run."""

    @cached_property
    def limits(self) -> dict[int, tuple[float, float]]:
        """Return the ends of the band at each step: a prediction interval for one run, at all steps together."""
        n = len(self.seeds)
        factor = t_quantile(n - 1, 1 - (1 - BAND_LEVEL) / len(self.steps)) * math.sqrt(1 + 1 / n)
        points = zip(self.steps, self.mean, self.deviation, strict=True)
        return {step: (middle - factor * spread, middle + factor * spread) for step, middle, spread in points}

    def applies_to(self, config: TrainConfig, measurement: Measurement) -> bool:
        """Return whether a run differs in its seed alone, and was measured, and trained, on the same data."""
        own = Measurement(**read_recorded({"measurement": self.measurement}))
        same_data = own.data == measurement.data is not None and agree_in_nats(own, measurement)
        return bool(same_data) and signature(without_seed(config)) == signature(without_seed(self.config))

    def find_differences(self, config: TrainConfig) -> list[str]:
        """Return `key value, here value` of what differs in a run's config."""
        own, theirs = (dict(iter_values(without_seed(found))) for found in (self.config, config))
        keys = [
            key for key, field in iter_fields(TrainConfig) if change_policy(field) != "free" and own[key] != theirs[key]
        ]
        return [f"{key} {one_line(own[key], 60)}, here {one_line(theirs[key], 60)}" for key in keys]

    def find_outside(self, curve: Curve) -> dict[int, Literal["above", "below"]]:
        """Return the steps at which a run is outside, and on which side."""
        at = {step: (curve[step], *ends) for step, ends in self.limits.items() if step in curve}
        return {
            step: "above" if loss > high else "below"
            for step, (loss, low, high) in at.items()
            if not low <= loss <= high
        }

    def describe(self, step: int, loss: float) -> str:
        """Return the words that end the log line of an evaluation: empty for a step without one in the reference."""
        if step not in self.limits:
            return ""
        side = self.find_outside({step: loss}).get(step)
        low, high = self.limits[step]
        return f"  {side} reference {low:.4f} to {high:.4f}" if side else "  inside reference"


def without_seed(config: TrainConfig) -> TrainConfig:
    """Return a config without its seed and what does not change a training, or is known by its measurement."""
    hardware = config.hardware.model_copy(update={"precision": "auto", "fp8": False})
    training = config.training.model_copy(update={"seed": 0})
    return config.model_copy(update={"training": training, "hardware": hardware, "eval": EvalConfig()})


def make_reference(
    name: str, config: TrainConfig, measurement: Measurement, curves: Mapping[int, Curve], made: dict[str, Any]
) -> Reference | None:
    """Return the curve of a setting from the losses of each seed; None if they are too few."""
    if len(curves) < MIN_SEEDS:
        return None
    steps = sorted(set[int].intersection(*(set(curve) for curve in curves.values())) - {0})
    losses = [[curve[step] for curve in curves.values()] for step in steps]
    return Reference(
        name=name,
        config=config,
        measurement=to_dict(measurement),
        seeds=tuple(curves),
        steps=tuple(steps),
        mean=tuple(map(mean, losses)),
        deviation=tuple(math.sqrt(variance(own)) for own in losses),
        made=made,
    )


def to_json(curves: Sequence[Reference]) -> str:
    """Return the content of a file. Keys of configs that can't change a result are left out."""
    values = [curve.model_dump(mode="json") | {"config": identity_fields(curve.config)} for curve in curves]
    return json.dumps(values, indent=1) + "\n"


def load_references(given: str, runs_dir: str, key: str) -> list[Reference]:
    """Return the curves of a packaged reference, a file, or a study's folder. Raises BadInput."""
    packaged = sorted(path.stem for path in PACKAGED.glob("*.json"))
    paths = [Path(given), Path(runs_dir) / given]
    path = PACKAGED / f"{given}.json" if given in packaged else next((p for p in paths if p.exists()), None)
    if path is None:
        names = [*packaged, *(entry.name for entry in list_entries(Path(runs_dir)) if (entry / FILE).exists())]
        raise BadInput(f"{key}={one_line(given)}: no such reference or study{hint(given, names)}")
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        raise BadInput(
            f"{key}={one_line(given)}: has no {FILE}; nanogpt report {one_line(path)} format=reference writes it"
        )
    return read_references(file)


def read_references(file: Path) -> list[Reference]:
    """Return the curves of a file. Raises BadInput."""
    try:
        found = [from_stored(Reference, values) for values in read_json_bytes(file)]
        if not [reference.limits for reference in found]:
            raise ValueError("it has no curve")
        return found
    except (OSError, ValueError, TypeError, BadInput) as error:
        raise BadInput(f"{one_line(file)}: not a reference curve: {one_line(error, 200)}") from None


def choose_reference(config: TrainConfig, measurement: Measurement) -> Reference | None:
    """Return the reference of a run by `tracking.reference`; None if none applies. Raises BadInput."""
    given = config.tracking.reference
    if given is None:
        return None
    if given == "auto":
        found = [reference for path in sorted(PACKAGED.glob("*.json")) for reference in read_references(path)]
    else:
        found = load_references(given, config.runs_dir, "tracking.reference")
    return next((reference for reference in found if reference.applies_to(config, measurement)), None)
