"""The job commands: status, logs, wait, cancel, retry and resubmit."""

import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli.launcher_config import LAUNCHERS, JobLauncher, LaunchConfig
from launch import local, slurm
from launch.resources import placed, resources_of
from launch.snapshot import restore, snapshot
from launch.status import Point, points_of
from launch.study import Member, Study, find_study
from launch.submission import create, records, submissions
from launch.sweep import submit
from launch.watching import status_table, tell_wrong, watch
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.console import escape_control_chars, say
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.files import check_regular, read_text
from nanogpt.run_directory import newest_step
from nanogpt.run_state import FAILED, OPEN, WRONG

FOLLOW = 0.5  # seconds between looks at a log


def chosen(config: LaunchConfig) -> tuple[Path, list[Point]]:
    """The study that is meant, and its points, or the one point that is meant. Raises BadInput."""
    study, run = find_study(config.target, config.runs_dir)
    points = points_of(study)
    if run is None:
        return study, points
    names = [point.run.name for point in points]
    if run not in names:
        raise BadInput(f"{one_line(run)}: no run of {one_line(study)}{hint(run, names)}")
    return study, [point for point in points if point.run.name == run]


@contextmanager
def alone(config: LaunchConfig) -> Generator[tuple[Study, list[Point]], None, None]:
    """The same while no other command submits or cancels here, lost job ids found again. Raises BadInput."""
    study = Study(find_study(config.target, config.runs_dir)[0], [])
    with records(study):
        for submission in submissions(study.path):
            submission.find_lost(slurm.find)
        yield study, chosen(config)[1]


def status(config: LaunchConfig) -> int:
    """Every point in a table, and the logs of those that went wrong."""
    study, points = chosen(config)
    say(status_table(study, points))
    tell_wrong(points)
    return 0


def wait(config: LaunchConfig) -> int:
    """Watch until all are done."""
    study, points = chosen(config)
    return watch(study, config.poll_s, {point.run for point in points})


def logs(config: LaunchConfig) -> int:
    """The end of each point's log; of one point as it grows, with follow=true. Raises BadInput."""
    _, points = chosen(config)
    there = [
        (point, log)
        for point in points
        if point.submission and (log := point.submission.log(point.index, config.rank)) and log.exists()
    ]
    if not there:
        raise BadInput("logs: nothing has started yet, or this rank never did; nanogpt status")
    if config.follow and len(there) > 1:
        raise BadInput("follow=true: of which run? name one")
    for point, log in there:
        say(f"=== {one_line(point.run.name)}  {point.state}  {one_line(log)}")
        for line in read_text(log, "replace").splitlines()[-config.lines :]:
            say(escape_control_chars(line))
    if config.follow:
        for text in growing(there[0][1]):
            say(escape_control_chars(text))
    return 0


def growing(path: Path) -> Iterator[str]:
    """Lines as they are added, for ever."""
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
                time.sleep(FOLLOW)


def cancel(config: LaunchConfig) -> int:
    """End what is queued or runs; it saves first. Raises BadEnvironment."""
    with alone(config) as (study, points):
        going = [point for point in points if point.state in OPEN]
        jobs = [point.job for point in going if on_slurm(point) and point.job]
        if jobs:
            slurm.cancel(jobs)
        for point in going:
            assert point.submission is not None
            point.submission.note(
                point.index, "end", state="cancelled", why="nanogpt cancel", step=newest_step(point.run)
            )
            if not on_slurm(point):
                local.stop(point.job)
    say(f"{one_line(study.path)}: {len(going)} cancelled; the same command that submitted them goes on with them")
    return 0


def on_slurm(point: Point) -> bool:
    return point.submission is not None and point.submission.facts.executor == "slurm"


def again(config: LaunchConfig, command: str, changes: dict[str, Any]) -> int:
    """Submit points again with the configs they were frozen with. `retry`: what failed, with the code it had;
    `resubmit`: all that isn't finished or on its way, with the code as it is now. Raises LabError.
    """
    states = FAILED if command == "retry" else WRONG
    with alone(config) as (study, points):
        points = [point for point in points if point.state in states]
        if not points:
            say(f"{one_line(study.path)}: nothing to {command}{describe_others(study, config)}")
            return 0
        if any(on_slurm(point) for point in points):
            slurm.require_slurm()
        groups: dict[int, list[Point]] = {}
        for point in points:
            assert point.submission is not None
            groups.setdefault(point.submission.number, []).append(point)
        code = str(snapshot((study.records / "code").absolute())) if command == "resubmit" else None
        codes = {
            number: code or str(restore(Path(group[0].submission.facts.code)))
            for number, group in groups.items()
            if group[0].submission
        }
        for number, group in groups.items():
            say(f"{one_line(study.path)}: {len(group)} points sent: {send(study, group, codes[number], changes)}")
    return 0


def describe_others(study: Study, config: LaunchConfig) -> str:
    """Return which points aren't finished though there is nothing to retry, and the command that submits them."""
    counts = Counter(point.state for point in chosen(config)[1])
    others = ", ".join(f"{counts[state]} {state}" for state in ("lost", "cancelled") if counts[state])
    return f"; {others}: nanogpt resubmit {one_line(study.path)}" if others else ""


def send(study: Study, points: list[Point], code: str, changes: dict[str, Any]) -> str:
    """Submit points of one submission again, with other code and launcher settings where given."""
    old = points[0].submission
    assert old is not None
    values = {key: value for key, value in old.facts.launcher.items() if value is not None} | changes
    kind = LAUNCHERS[old.facts.executor]
    try:
        launcher = schema.from_stored(kind, values)
    except BadInput as error:
        raise BadInput(f"hydra.launcher.{error}") from None
    assert isinstance(launcher, JobLauncher)
    members = [Member(point.run, unplaced(old.config(point.index), changes)) for point in points]
    resources = resources_of(members[0].config, launcher)
    members = [Member(member.run, placed(member.config, resources)) for member in members]
    changed = {"launcher": launcher.model_dump(mode="json"), "code": code, "time": time.time()}
    facts = old.facts.model_copy(update=changed | {"resources": asdict(resources)})
    return submit(study, create(study, members, facts), launcher, resources)


def unplaced(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    """A frozen config without the nodes and ranks that are to change."""
    keys = {"nodes": "nodes", "tasks_per_node": "devices"}
    free = {mine: None for name, mine in keys.items() if name in changes}
    return config.model_copy(update={"hardware": config.hardware.model_copy(update=free)})
