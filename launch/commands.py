"""The job commands: status, logs, wait, cancel, retry and resubmit."""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli.launcher_config import LaunchConfig
from launch import slurm
from launch.cancelling import cancel_points, is_on_slurm
from launch.driver import read_driver, read_exit_code
from launch.resources import compute_resources, with_ranks
from launch.snapshot import restore, snapshot
from launch.status import RunStatus, read_points
from launch.study import PlannedRun, Study, find_study
from launch.submission import create_submission, lock_records, read_submissions
from launch.sweep import submit_jobs
from launch.watching import print_failures, print_left, status_table, watch, watch_search
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.console import print_text
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.files import check_regular, read_text
from nanogpt.formatting import escape_control_chars
from nanogpt.json_output import print_result
from nanogpt.run_state import FAILED, NEEDS_ATTENTION, count_states

FOLLOW_S = 0.5  # seconds between reads of a growing log


def find_points(config: LaunchConfig) -> tuple[Path, list[RunStatus]]:
    """Return the study that is meant and its points, or the one point that is meant. Raises BadInput."""
    study, run = find_study(config.target, config.runs_dir)
    points = read_points(study)
    if run is None:
        return study, points
    names = [point.path.name for point in points]
    if run not in names:
        raise BadInput(f"{one_line(run)}: no run of {one_line(study)}{hint(run, names)}")
    return study, [point for point in points if point.path.name == run]


@contextmanager
def lock_study(config: LaunchConfig) -> Generator[tuple[Study, list[RunStatus]], None, None]:
    """Yield the study and its points while no other command submits or cancels there. Raises BadInput."""
    study = Study(find_study(config.target, config.runs_dir)[0], [])
    with lock_records(study):
        for submission in read_submissions(study.path):
            submission.recover_job_ids(slurm.find_job_by_name)
        yield study, find_points(config)[1]


def status(config: LaunchConfig) -> int:
    """Print a table of all points, and the logs of those that failed."""
    study, points = find_points(config)

    driver = read_driver(study)

    def print_table(_: object) -> None:
        print_text(status_table(study, points))
        print_failures(points)
        if driver:
            print_text(f"search  {driver.state}, job {driver.job}; log: {one_line(driver.log)}")

    about_search = {"search": driver.model_dump(exclude={"started"}) | {"state": driver.state}} if driver else {}
    print_result(config.format, {"study": study, "points": points} | about_search, print_table)
    return 0


def wait(config: LaunchConfig) -> int:
    """Show a live table until all jobs have ended. Return the exit code: of a search that runs as a job, its own."""
    study, points = find_points(config)
    driver = read_driver(study)
    if driver is None or find_study(config.target, config.runs_dir)[1] is not None:
        return watch(study, config.poll_s, {point.path for point in points})
    found = watch_search(study, config.poll_s, lambda: driver.in_progress)
    if found is None:
        return print_left(study)
    print_text(status_table(study, found))
    print_failures(found)
    code = read_exit_code(study)
    end = "ended before it was done" if code is None else f"exit code {code}"
    print_text(f"search  {end}; log: {one_line(driver.log)}")
    return 1 if code is None else code


def logs(config: LaunchConfig) -> int:
    """Print the end of each point's log; with follow=true one log as it grows. Raises BadInput."""
    _, points = find_points(config)
    started = [
        (point, log)
        for point in points
        if point.submission and (log := point.submission.log(point.index, config.rank)) and log.exists()
    ]
    if not started:
        raise BadInput("logs: no point, or not this rank of one, has started yet; see nanogpt status")
    if config.follow and len(started) > 1:
        raise BadInput("follow=true: follows one log; name a run")
    for point, log in started:
        print_text(f"=== {one_line(point.path.name)}  {point.state}  {one_line(log)}")
        for line in read_text(log, "replace").splitlines()[-config.lines :]:
            print_text(escape_control_chars(line))
    if config.follow:
        for text in follow_lines(started[0][1]):
            print_text(escape_control_chars(text))
    return 0


def follow_lines(path: Path) -> Iterator[str]:
    """Yield lines as they are appended, forever."""
    check_regular(path)
    with path.open(errors="replace") as file:
        file.seek(0, 2)
        part = ""
        while True:
            part += file.readline()
            if part.endswith("\n"):
                yield part.rstrip("\n")
                part = ""
            else:
                time.sleep(FOLLOW_S)


def cancel(config: LaunchConfig) -> int:
    """Stop points that are queued or running; they save first. Raises BadEnvironment."""
    with lock_study(config) as (study, points):
        check_whole_jobs(study, points)
        driver = read_driver(study.path)
        if driver and find_study(config.target, config.runs_dir)[1] is None:
            driver.stop()  # it would start others
        count = cancel_points(points, "nanogpt cancel")
    print_text(f"{one_line(study.path)}: {count} cancelled; the command that submitted them continues them")
    return 0


def check_whole_jobs(study: Study, points: list[RunStatus]) -> None:
    """Raise BadInput if one of the points shares its job on Slurm with a point that is not among them."""
    going = {point.job: point for point in points if point.in_progress and is_on_slurm(point) and point.job}
    mine = {point.path for point in points}
    for other in read_points(study.path):
        if other.in_progress and other.job in going and other.path not in mine:
            why = f"shares job {other.job} with {one_line(other.path.name)} (hydra.launcher.points_per_job)"
            name = one_line(going[other.job].path.name)
            raise BadInput(f"{name}: {why}; nanogpt cancel {one_line(study.path)} stops all")


def resubmit(config: LaunchConfig, command: str, changes: dict[str, Any]) -> int:
    """Submit points again with their frozen configs. `retry`: failed points, with their frozen code; `resubmit`: all
    that are neither finished nor in progress, with the current code. Raises LabError.
    """
    states = FAILED if command == "retry" else NEEDS_ATTENTION
    with lock_study(config) as (study, points):
        points = [point for point in points if point.state in states]
        if not points:
            print_text(f"{one_line(study.path)}: nothing to {command}{describe_others(study, config)}")
            return 0
        if any(is_on_slurm(point) for point in points):
            slurm.check_slurm_available()
        groups: dict[int, list[RunStatus]] = {}
        for point in points:
            assert point.submission is not None
            groups.setdefault(point.submission.number, []).append(point)
        code = str(snapshot((study.records / "code").absolute())) if command == "resubmit" else None
        codes = {
            number: code or str(restore(Path(group[0].submission.spec.code)))
            for number, group in groups.items()
            if group[0].submission
        }
        for number, group in groups.items():
            jobs = resubmit_points(study, group, codes[number], changes)
            print_text(f"{one_line(study.path)}: {len(group)} points submitted: {jobs}")
    return 0


def describe_others(study: Study, config: LaunchConfig) -> str:
    """Return which points aren't finished though there is nothing to retry, and the command that submits them."""
    states = [point.state for point in find_points(config)[1]]
    others = count_states(state for state in states if state in ("lost", "cancelled"))
    return f"; {others}: nanogpt resubmit {one_line(study.path)}" if others else ""


def resubmit_points(study: Study, points: list[RunStatus], code: str, changes: dict[str, Any]) -> str:
    """Submit points of one submission again, with `code` and the changed launcher settings. Return the jobs."""
    old = points[0].submission
    assert old is not None
    try:
        launcher = schema.from_dict(type(old.launcher), old.launcher.model_dump() | changes)
    except BadInput as error:
        raise BadInput(f"hydra.launcher.{error}") from None
    planned_runs = [PlannedRun(point.path, without_ranks(old.config(point.index), changes)) for point in points]
    resources = compute_resources(planned_runs[0].config, launcher)
    planned_runs = [PlannedRun(planned.path, with_ranks(planned.config, resources)) for planned in planned_runs]
    changed = {"launcher": launcher.model_dump(mode="json"), "code": code, "time": time.time()}
    spec = old.spec.model_copy(update=changed | {"resources": asdict(resources)})
    return submit_jobs(study, create_submission(study, planned_runs, spec), launcher, resources)


def without_ranks(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    """Return a frozen config without the numbers of nodes and ranks that `changes` sets."""
    keys = {"nodes": "nodes", "tasks_per_node": "devices"}
    free = {mine: None for name, mine in keys.items() if name in changes}
    return config.model_copy(update={"hardware": config.hardware.model_copy(update=free)})
