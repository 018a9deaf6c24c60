"""Preview of a sweep: states of its points, resources, predicted time and memory."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cli.launcher_config import JobLauncher, SlurmLauncher
from cli.sweep_config import SweepConfig
from launch import local
from launch.forecast import Forecast, forecast
from launch.resources import Resources
from launch.status import RunStatus, read_points, read_run
from launch.study import PlannedRun, Study
from nanogpt.config import Metric
from nanogpt.errors import one_line
from nanogpt.json_output import to_json_value
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory, newest_step
from nanogpt.run_state import FAILED, REACHED_GOAL, RESUBMITTED, count_states

logger = logging.getLogger(__name__)


def runs_to_start(
    planned_runs: list[PlannedRun], before: dict[Path, RunStatus], settings: SweepConfig
) -> list[PlannedRun]:
    """Return the runs that are neither done nor in progress; with sweep.retry=failed also those that failed."""
    again = (*RESUBMITTED, *FAILED) if settings.retry else RESUBMITTED
    start = [run for run in planned_runs if before[run.path].state in again]
    return [run for run in start if run.config.stop_at_fraction is None or metric_at_goal(run) is None]


def read_states(study: Study) -> dict[Path, RunStatus]:
    """Return the state of every run of a study, by its run directory, with or without a launcher."""
    wanted = {planned.path.resolve() for planned in study.runs}
    before = {point.path: point for point in read_points(study.path, wanted=wanted)}
    return {planned.path: read_state(planned, before.get(planned.path.resolve())) for planned in study.runs}


def read_state(planned: PlannedRun, point: RunStatus | None) -> RunStatus:
    if planned.config.new_attempt:
        return RunStatus(planned.path)
    if point is None:
        point = read_run(planned.path)
        if point.state not in (*REACHED_GOAL, *FAILED):
            point.state, point.why = "new", ""
    return point


def goal_step(planned: PlannedRun) -> int | None:
    """Return the step at which a run pauses or ends; None until its run has stored how many steps there are."""
    steps = RunDirectory(planned.path).read_status().get("steps")
    return planned.config.last_step(steps) if isinstance(steps, int) else None


def metric_at_goal(planned: PlannedRun, metric: Metric = "val_loss") -> float | None:
    """Return the metric at the step where a run pauses or ends; None until that step and its checkpoint exist."""
    goal = goal_step(planned)
    if goal is None:
        return None
    if RunDirectory(planned.path).read_status().get("state") != "finished" and newest_step(planned.path) < goal:
        return None
    key = metric.removeprefix("best_")
    found = {row["step"]: row[key] for row in read_rows(planned.path / "metrics.jsonl") if key in row}
    if goal not in found:
        return None
    return found[goal] if metric == key else min(value for step, value in found.items() if step <= goal)


Placement = tuple[JobLauncher, dict[Resources, list[PlannedRun]]]


@dataclass(frozen=True)
class Preview:
    """Points of a study: those that are done, and those that are about to start."""

    study: Study
    before: dict[Path, RunStatus]
    """State of each point."""
    settings: SweepConfig
    start: list[PlannedRun]
    """Points that are about to start."""
    where: Placement | None
    """Launcher and resources; None: this process."""
    forecast: Forecast

    def json_fields(self) -> dict[str, Any]:
        """Return what `format=json` shows."""
        runs = {planned.path for planned in self.start}
        predicted = to_json_value(self.forecast)
        by_run = {point["run"]: point for point in predicted.pop("points")}
        points = [
            {"run": run, "state": point.state, "why": point.why or None, "starts": run in runs}
            | {"forecast": by_run.get(str(run))}
            for run, point in self.before.items()
        ]
        launcher, groups = self.where or (None, dict[Resources, list[PlannedRun]]())
        resources = [asdict(resources) | {"points": len(planned)} for resources, planned in groups.items()]
        limit = {"time_limit_s": launcher and 60 * launcher.timeout_min}
        return {"study": self.study.path, "points": points, "resources": resources} | limit | predicted


def build_preview(
    study: Study, before: dict[Path, RunStatus], settings: SweepConfig, where: Placement | None = None
) -> Preview:
    """Return the preview of a study; `where` has the launcher and resources, None: this process."""
    start = runs_to_start(study.runs, before, settings)
    return Preview(study, before, settings, start, where, forecast_points(study, start, settings, where))


def log_preview(preview: Preview) -> None:
    """Log what is done and what is about to start."""
    study, before, where = preview.study, preview.before, preview.where
    runs = {planned.path for planned in preview.start}
    rest = count_states(point.state for run, point in before.items() if run not in runs)
    verb = "submit" if where else "run"
    size = f"{len(study.runs)} point{'s' if len(study.runs) > 1 else ''}"
    logger.info(f"study   {one_line(study.path)}: {size}, {len(preview.start)} to {verb}{f' ({rest})' if rest else ''}")
    if where:
        log_resources(*where)
    for line in preview.forecast.lines():
        logger.info(line)
    failed = [point for point in before.values() if point.state in FAILED]
    for point in failed[:5]:
        logger.info(f"{point.state:<8}{one_line(point.path.name)}: {one_line(point.why, 200)}")
    if failed and not preview.settings.retry:
        jobs = f", or nanogpt retry {one_line(study.path)}" if where else ""
        logger.info(f"        not {'submitted' if where else 'run'} again; sweep.retry=failed does{jobs}")


def forecast_points(study: Study, start: list[PlannedRun], settings: SweepConfig, where: Placement | None) -> Forecast:
    at_once: int | None = 1
    here = True
    if where:
        launcher, groups = where
        here = not isinstance(launcher, SlurmLauncher)
        points = min((resources.points_per_job for resources in groups), default=1)
        at_once = launcher.array_parallelism and launcher.array_parallelism * points
        if here:
            at_once = min(local.count_slots(at_once, asdict(resources)) for resources in groups)
        placed = {planned.path: planned for planned_runs in groups.values() for planned in planned_runs}
        start = [placed[planned.path] for planned in start]
    return forecast(start, settings.gpu, at_once, study.path.parent, here)


def log_resources(launcher: JobLauncher, groups: dict[Resources, list[PlannedRun]]) -> None:
    for resources, planned_runs in groups.items():
        on_slurm, shared = isinstance(launcher, SlurmLauncher), resources.points_per_job > 1
        usual = 256 if on_slurm else resources.points_per_job if shared else "as fit"
        most, jobs = launcher.array_parallelism or usual, " jobs" if on_slurm and shared else ""
        count = f"{len(planned_runs)} points: " if len(groups) > 1 else ""
        limits = f"{launcher.timeout_min} min per attempt; at most {most}{jobs} at once"
        logger.info(f"needs   {count}{resources.describe()}; {limits}")
    points = [planned for planned_runs in groups.values() for planned in planned_runs]
    if isinstance(launcher, SlurmLauncher) and any(planned.config.hardware.device == "auto" for planned in points):
        logger.info("note    hardware.device=auto requests no GPU from Slurm; hardware=gpu requests one per rank")
