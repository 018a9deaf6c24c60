"""The state of every point of a study, from its submissions, the queue, and the files of its run.

Needs no accounting. If slurmctld does not answer, the state is `unknown`, never `lost`.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch import local, slurm
from launch.slurm import QueueEntry
from launch.submission import Event, Submission, read_submissions
from nanogpt.files import from_json, open_regular
from nanogpt.metrics_file import as_count, as_number, is_row
from nanogpt.run_directory import RunDirectory
from nanogpt.run_state import DONE, State

SLURM_END_STATES: dict[str, tuple[State, str]] = {  # Slurm's words for an end that the point itself said nothing about
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
class PointStatus:
    """State of one point of a study."""

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
class JobQueues:
    """The queues of Slurm and of this machine, each asked at most once."""

    jobs: dict[str, QueueEntry] | None = None
    asked: bool = False
    pools: dict[Path, bool] = field(default_factory=dict[Path, bool])

    def slurm_jobs(self) -> dict[str, QueueEntry] | None:
        if not self.asked:
            self.jobs, self.asked = slurm.list_jobs(), True
        return self.jobs

    def is_pool_alive(self, submission: Submission) -> bool:
        if submission.path not in self.pools:
            self.pools[submission.path] = local.is_pool_alive(submission)
        return self.pools[submission.path]


def read_points(study: Path, cluster: JobQueues | None = None) -> list[PointStatus]:
    """Return every point ever submitted in a study's folder, by its last submission, in order."""
    cluster = cluster or JobQueues()
    places: dict[Path, tuple[Submission, int]] = {}
    for submission in read_submissions(study):
        for index, run in enumerate(submission.runs):
            places[run] = (submission, index)
    points = [read_point(run, *place, cluster) for run, place in places.items()]
    apply_accounting(points)
    return points


def read_point(run: Path, submission: Submission, index: int, cluster: JobQueues) -> PointStatus:
    """Return one point by its last submission."""
    events = submission.events(index)
    point = PointStatus(run, submission=submission, index=index, job=submission.job_id(index) or "")
    starts = [event for event in events if event["event"] == "start"]
    point.restarts = max(0, len(starts) - 1)
    point.log = submission.log(index)
    if starts and (submission.spec.executor == "local" or not point.job):
        point.job = str(starts[-1]["job"])
    read_run_files(point)
    ended_well = bool(events) and events[-1].get("state") == "finished"
    if point.state != "finished" and not (point.state == "paused" and ended_well):
        point.state, point.why = decide_state(events, query_job(point, cluster), bool(point.job))
        point.code = events[-1].get("code", 0) if events else 0
    return point


def read_run_files(point: PointStatus) -> None:
    """Fill in what the run directory says: step, number of steps, last validation loss, finished or paused."""
    run = RunDirectory(point.run)
    status = run.status()
    point.step, point.steps = as_count(status.get("step")) or 0, as_count(status.get("steps"))
    point.updated = as_number(status.get("updated")) or 0.0
    for row in read_last_rows(point.run / "metrics.jsonl"):
        point.step = max(point.step, as_count(row.get("step")) or 0)
        loss = as_number(row.get("val_loss"))
        point.val = point.val if loss is None else loss
    if (state := status.get("state")) in DONE:
        point.state = str(state)


def read_last_rows(path: Path, size: int = 4096) -> list[dict[str, Any]]:
    """Return the last rows of a JSON lines file without reading all of it."""
    rows: list[dict[str, Any]] = []
    with suppress(OSError), open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        for line in file.read().splitlines():
            with suppress(ValueError):
                row: object = from_json(line)
                if is_row(row):
                    rows.append(row)  # pyright: ignore[reportUnknownArgumentType]
    return rows


def query_job(point: PointStatus, cluster: JobQueues) -> QueueEntry | None:
    """Return the queue's entry of a point, state `GONE` if it has none, or None if Slurm doesn't answer."""
    assert point.submission is not None
    if point.submission.spec.executor == "local":
        alive = cluster.is_pool_alive(point.submission) or (point.job != "" and local.is_controller(point.job))
        return QueueEntry("RUNNING" if alive else "GONE", "")
    jobs = cluster.slurm_jobs() if point.submission.was_submitted(point.index) else {}
    if jobs is None:
        return None
    return jobs.get(point.job, QueueEntry("GONE", ""))


def decide_state(events: list[Event], job: QueueEntry | None, submitted: bool) -> tuple[str, str]:
    """Return state and reason, from the point's events and its queue entry."""
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
    if word in SLURM_END_STATES and not ended:
        return SLURM_END_STATES[word]
    return "lost", put_back or "its job is gone and said nothing: cancelled, killed or its node lost"


def apply_accounting(points: list[PointStatus]) -> None:
    """Replace the state of lost points that the queue forgot by what sacct recorded, if there is accounting."""
    lost = [p for p in points if p.state == "lost" and p.submission and p.submission.spec.executor == "slurm" and p.job]
    states = slurm.read_accounting([point.job for point in lost])
    for point in lost:
        word = states.get(point.job, "").split()
        if word and word[0].rstrip("+") in SLURM_END_STATES:
            point.state, point.why = SLURM_END_STATES[word[0].rstrip("+")]
