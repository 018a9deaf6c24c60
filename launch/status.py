"""What every point of a study is doing: from what was submitted, what the queue says, and what the run itself wrote.

No accounting is needed, and silence of the controller is never taken for an end.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch import local, slurm
from launch.slurm import Queued
from launch.submission import Event, Submission, submissions
from nanogpt.files import from_json, open_regular
from nanogpt.metrics_file import as_count, as_number, is_row
from nanogpt.run_directory import RunDirectory
from nanogpt.run_state import DONE, State

ENDS: dict[str, tuple[State, str]] = {  # Slurm's words for an end that the point itself said nothing about
    "CANCELLED": ("cancelled", "cancelled in Slurm"),
    "TIMEOUT": ("lost", "ended at its time limit without saving in time"),
    "OUT_OF_MEMORY": ("failed", "out of memory: killed by the system"),
    "NODE_FAIL": ("lost", "its node failed"),
    "BOOT_FAIL": ("lost", "its node didn't start"),
    "DEADLINE": ("lost", "its deadline passed"),
    "PREEMPTED": ("lost", "preempted and not put back"),
    "FAILED": ("failed", "the job failed and left no word; see its log"),
    "COMPLETED": ("lost", "the job ended without a word"),
}


@dataclass
class Point:
    """One point of a study, as it is now."""

    run: Path
    state: str = "new"
    """One of nanogpt.run_state's."""
    why: str = ""
    job: str = ""
    restarts: int = 0
    step: int = 0
    steps: int | None = None
    val: float | None = None
    updated: float = 0.0
    log: Path | None = None
    submission: Submission | None = None
    index: int = 0
    code: int = 0
    """The exit code of what failed."""


@dataclass
class Cluster:
    """What the queues say; asked at most once for all points."""

    jobs: dict[str, Queued] | None = None
    asked: bool = False
    pools: dict[Path, bool] = field(default_factory=dict[Path, bool])

    def slurm(self) -> dict[str, Queued] | None:
        if not self.asked:
            self.jobs, self.asked = slurm.queue(), True
        return self.jobs

    def pool(self, submission: Submission) -> bool:
        if submission.path not in self.pools:
            self.pools[submission.path] = local.runs(submission)
        return self.pools[submission.path]


def points_of(study: Path, cluster: Cluster | None = None) -> list[Point]:
    """Every point that was ever submitted from a study's folder, as its last submission has it, in order."""
    cluster = cluster or Cluster()
    places: dict[Path, tuple[Submission, int]] = {}
    for submission in submissions(study):
        for index, run in enumerate(submission.runs):
            places[run] = (submission, index)
    points = [point_of(run, *place, cluster) for run, place in places.items()]
    ask_accounting(points)
    return points


def point_of(run: Path, submission: Submission, index: int, cluster: Cluster) -> Point:
    """One point as its last submission has it."""
    events = submission.events(index)
    point = Point(run, submission=submission, index=index, job=submission.job_of(index) or "")
    starts = [event for event in events if event["event"] == "start"]
    point.restarts = max(0, len(starts) - 1)
    point.log = submission.log(index)
    if starts and (submission.facts.executor == "local" or not point.job):
        point.job = str(starts[-1]["job"])
    read_run(point)
    ended_well = bool(events) and events[-1].get("state") == "finished"
    if point.state != "finished" and not (point.state == "paused" and ended_well):
        point.state, point.why = state_of(events, queued(point, cluster), bool(point.job))
        point.code = events[-1].get("code", 0) if events else 0
    return point


def read_run(point: Point) -> None:
    """What the run directory says: step, horizon, last validation loss, whether it is finished or paused."""
    run = RunDirectory(point.run)
    status = run.status()
    point.step, point.steps = as_count(status.get("step")) or 0, as_count(status.get("steps"))
    point.updated = as_number(status.get("updated")) or 0.0
    for row in last_rows(point.run / "metrics.jsonl"):
        point.step = max(point.step, as_count(row.get("step")) or 0)
        loss = as_number(row.get("val_loss"))
        point.val = point.val if loss is None else loss
    if (state := status.get("state")) in DONE:
        point.state = str(state)


def last_rows(path: Path, size: int = 4096) -> list[dict[str, Any]]:
    """The last rows of a JSON lines file, however long it is."""
    rows: list[dict[str, Any]] = []
    with suppress(OSError), open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        for line in file.read().splitlines():
            with suppress(ValueError):
                row: object = from_json(line)
                if is_row(row):
                    rows.append(row)  # pyright: ignore[reportUnknownArgumentType]
    return rows


def queued(point: Point, cluster: Cluster) -> Queued | None:
    """What its queue says of a point: a job, `gone`, or None when it doesn't answer."""
    assert point.submission is not None
    if point.submission.facts.executor == "local":
        alive = cluster.pool(point.submission) or (point.job != "" and local.controls(point.job))
        return Queued("RUNNING" if alive else "GONE", "")
    jobs = cluster.slurm() if point.submission.handed_over(point.index) else {}
    if jobs is None:
        return None
    return jobs.get(point.job, Queued("GONE", ""))


def state_of(events: list[Event], job: Queued | None, submitted: bool) -> tuple[str, str]:
    """(state, why) from what the point noted itself and what the queue says."""
    last: Mapping[str, Any] = events[-1] if events else {}
    ended = last.get("event") == "end"
    if ended and last["state"] not in ("requeued", "finished"):
        return str(last["state"]), str(last["why"])
    if not submitted and job is not None and job.state == "GONE":
        return "lost", "its submission was cut short or refused; the same command submits it"
    if job is None:
        return "unknown", "Slurm doesn't answer"
    put_back = f"put back: {last['why']}" if ended else ""
    if job.state in slurm.ACTIVE:
        if not events or ended or job.state in ("PENDING", "REQUEUED", "CONFIGURING"):
            return "queued", put_back or (job.reason if job.reason not in ("None", "") else "")
        return "running", "" if job.state == "RUNNING" else job.state.lower()
    word = job.state.split()[0].rstrip("+") if job.state else "GONE"
    if word in ENDS and not ended:
        return ENDS[word]
    return "lost", put_back or "its job is gone and said nothing: cancelled, killed or its node lost"


def ask_accounting(points: list[Point]) -> None:
    """Of lost points that the queue forgot, what the accounting remembers, if there is any."""
    lost = [
        p for p in points if p.state == "lost" and p.submission and p.submission.facts.executor == "slurm" and p.job
    ]
    states = slurm.history([point.job for point in lost])
    for point in lost:
        word = states.get(point.job, "").split()
        if word and word[0].rstrip("+") in ENDS:
            point.state, point.why = ENDS[word[0].rstrip("+")]
