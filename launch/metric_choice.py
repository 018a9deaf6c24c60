"""The metric that ranks the points of a sweep; checked before training starts and before each decision."""

import logging
from collections.abc import Iterator, Sequence

from cli.search_space import Axis, Space
from launch.study import PlannedRun
from nanogpt.comparability import IN_BITS, compare_measurements
from nanogpt.config import Metric, TrainConfig
from nanogpt.errors import BadInput, one_line
from nanogpt.measurement import Measurement, measured_at, planned_measurement, read_history, requested_measurement
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory

logger = logging.getLogger(__name__)

MEASURED = ("data", "model", "eval", "hardware", "experiment")  # groups that can change what a result is measured on
UNITS: dict[Metric, str] = {
    "val_loss": "val",
    "val_bpb": "bits/byte",
    "best_val_loss": "best val",
    "best_val_bpb": "best bits/byte",
}


def choose_metric(configs: Sequence[TrainConfig], asked: Metric, sweeper: str) -> Metric:
    """Return the metric in which the points of a sweep can be compared: `asked`, or bits per byte in its place.

    Raises BadInput with the difference if they can't be compared at all.
    """
    verdict = compare_measurements(measure_plans(configs))
    if verdict.unit is None:
        raise BadInput(
            f"{sweeper}: its points can't be compared with each other, because {one_line(verdict.reason, 500)}; "
            "run a separate study for each value"
        )
    metric = asked if verdict.unit == "nats" else IN_BITS[asked]
    if metric != asked:
        logger.info(
            f"note    compared by {UNITS[metric]} instead of {UNITS[asked]}, because {one_line(verdict.reason, 500)}"
        )
    if verdict.note:
        logger.info(f"note    {verdict.note}")
    return metric


def measure_plans(configs: Sequence[TrainConfig]) -> list[Measurement]:
    """Return what the points will be measured on. With equal `hardware` they get the same precision, whatever it is."""
    hardware = {(config.hardware.precision, config.hardware.device) for config in configs}
    return [requested_measurement(config) if len(hardware) == 1 else planned_measurement(config) for config in configs]


def check_comparable(runs: Sequence[PlannedRun], metric: Metric) -> None:
    """Raise BadInput if the measurements that these runs recorded can't be compared in `metric`."""
    verdict = compare_measurements([found for planned in runs if (found := read_measurement(planned))])
    if verdict.unit is None or (verdict.unit == "bits_per_byte" and IN_BITS[metric] != metric):
        raise BadInput(
            f"hydra.sweeper.metric={metric}: can't decide between these runs, because {one_line(verdict.reason, 500)}"
        )


def read_measurement(planned: PlannedRun) -> Measurement | None:
    """Return what a run's last evaluation was measured on; None before the first."""
    rows = [row for row in read_rows(planned.path / "metrics.jsonl") if "val_loss" in row]
    if not rows:
        return None
    return measured_at(
        read_history(planned.config, RunDirectory(planned.path).read_starts(), planned.path), rows[-1]["step"]
    )


def search_plans(space: Space[TrainConfig], start: TrainConfig) -> list[TrainConfig]:
    """Return configs that cover all that a search may compare: `start`, and each axis varied by itself."""
    return [start, *(config for axis in space.axes for config in vary_axis(space, axis))]


def vary_axis(space: Space[TrainConfig], axis: Axis) -> Iterator[TrainConfig]:
    """Yield a config for each choice of one axis, or for both ends of an interval."""
    if axis.key.partition(".")[0] not in MEASURED:
        return
    defaults = {other.key: other.value_at(0) for other in space.axes}
    for text in axis.choices or (axis.text(axis.low), axis.text(axis.high)):
        try:
            yield from (point.config for point in space.points(defaults | {axis.key: text}))
        except BadInput:
            continue  # becomes an invalid trial
