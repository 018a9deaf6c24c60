"""What the points of a study are doing before anything starts, and what is about to be done, in some lines."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from cli.launcher_config import JobLauncher, SlurmLauncher
from cli.sweep_config import SweepConfig
from launch import local
from launch.forecast import estimate
from launch.resources import Resources
from launch.status import Point, points_of, read_run
from launch.study import Member, Study
from nanogpt.config import Metric
from nanogpt.console import say
from nanogpt.errors import one_line
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory, newest_step
from nanogpt.run_state import FAILED, RESUBMITTED


def todo(members: list[Member], before: dict[Path, Point], settings: SweepConfig) -> list[Member]:
    """The points that are to be started: neither done, nor on their way, nor failed, unless sweep.retry says so."""
    again = (*RESUBMITTED, *FAILED) if settings.retry else RESUBMITTED
    start = [one for one in members if before[one.run].state in again]
    return [one for one in start if one.config.stop_at_fraction is None or goal_value(one) is None]


def states(study: Study) -> dict[Path, Point]:
    """What every point is doing, whoever started it, by the run directory that the study has for it."""
    before = {point.run: point for point in points_of(study.path)}
    return {member.run: state(member, before.get(member.run.resolve())) for member in study.members}


def state(member: Member, point: Point | None) -> Point:
    """One point."""
    if member.config.new_attempt:
        return Point(member.run)
    if point is None:
        point = Point(member.run)
        read_run(point)
        run = RunDirectory(member.run)
        if (ended := run.status().get("state")) in FAILED:  # in a sweep that ran here
            point.state, point.why = str(ended), run.last_words()
    return point


def goal_step(member: Member) -> int | None:
    """The step at which a point pauses or ends; None until its run has said how many steps there are."""
    steps = RunDirectory(member.run).status().get("steps")
    return member.config.last_step(steps) if isinstance(steps, int) else None


def goal_value(member: Member, metric: Metric = "val_loss") -> float | None:
    """Return the metric where a point pauses, or at its end; None until it is there, and its checkpoint with it."""
    goal = goal_step(member)
    if goal is None:
        return None
    if RunDirectory(member.run).status().get("state") != "finished" and newest_step(member.run) < goal:
        return None
    key = metric.removeprefix("best_")
    found = {row["step"]: row[key] for row in read_rows(member.run / "metrics.jsonl") if key in row}
    if goal not in found:
        return None
    return found[goal] if metric == key else min(value for step, value in found.items() if step <= goal)


def preview(
    study: Study,
    before: dict[Path, Point],
    settings: SweepConfig,
    where: tuple[JobLauncher, dict[Resources, list[Member]]] | None = None,
) -> None:
    """What is there and what is about to be done; on which machines, when a launcher does it."""
    start = todo(study.members, before, settings)
    runs = {member.run for member in start}
    counts = Counter(point.state for run, point in before.items() if run not in runs)
    rest = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
    verb = "submit" if where else "run"
    size = f"{len(study.members)} point{'s' if len(study.members) > 1 else ''}"
    say(f"study   {one_line(study.path)}: {size}, {len(start)} to {verb}{f' ({rest})' if rest else ''}")
    if where:
        say_needs(*where)
    say_estimate(study, start, settings, where)
    failed = [point for point in before.values() if point.state in FAILED]
    for point in failed[:5]:
        say(f"{point.state:<8}{one_line(point.run.name)}: {one_line(point.why, 200)}")
    if failed and not settings.retry:
        jobs = f", or nanogpt retry {one_line(study.path)}" if where else ""
        say(f"        not {'submitted' if where else 'run'} again; sweep.retry=failed does{jobs}")


def say_estimate(
    study: Study,
    start: list[Member],
    settings: SweepConfig,
    where: tuple[JobLauncher, dict[Resources, list[Member]]] | None,
) -> None:
    """About how long it will take, and whether it fits into memory."""
    at_once: int | None = 1
    here = True
    if where:
        launcher, groups = where
        here = not isinstance(launcher, SlurmLauncher)
        at_once = launcher.array_parallelism
        if here:
            at_once = min(local.slots(at_once, asdict(resources)) for resources in groups)
        placed = {member.run: member for members in groups.values() for member in members}
        start = [placed[member.run] for member in start]
    for line in estimate(start, settings.gpu, at_once, study.path.parent, here):
        say(line)


def say_needs(launcher: JobLauncher, groups: dict[Resources, list[Member]]) -> None:
    """The machines of a job."""
    for resources, members in groups.items():
        most = launcher.array_parallelism or (256 if isinstance(launcher, SlurmLauncher) else "as fit")
        count = f"{len(members)} points: " if len(groups) > 1 else ""
        say(f"needs   {count}{resources.line()}; {launcher.timeout_min} min in one go; at most {most} at once")
    points = [member for members in groups.values() for member in members]
    if isinstance(launcher, SlurmLauncher) and any(one.config.hardware.device == "auto" for one in points):
        say("note    hardware.device=auto asks Slurm for no GPU; hardware=gpu asks for one a rank")
