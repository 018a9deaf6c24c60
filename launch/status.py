"""The state of runs and of a study's points, from submissions, the queue, and the files of a run.

Needs no accounting. If slurmctld does not answer, the state is `unknown`, never `lost`.
"""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch import local, slurm
from launch.slurm import QueueEntry
from launch.submission import Event, Submission, read_submissions
from nanogpt.errors import one_line
from nanogpt.files import from_json, mtime, open_regular
from nanogpt.metrics_file import Row, as_count, as_number, is_row
from nanogpt.run_directory import RunDirectory
from nanogpt.run_state import FAILED, IN_PROGRESS, WRITTEN, State, is_alive

LONG_SILENCE_S = 3600.0  # without a write, after which a run on another machine is reported as silent

SLURM_END_STATES: dict[str, tuple[State, str]] = {  # of jobs that ended without recording why
    "CANCELLED": ("cancelled", "cancelled in Slurm"),
    "TIMEOUT": ("lost", "ended at its time limit without saving in time"),
    "OUT_OF_MEMORY": ("failed", "out of memory: killed by the system"),
    "NODE_FAIL": ("lost", "its node failed"),
    "BOOT_FAIL": ("lost", "its node didn't start"),
    "DEADLINE": ("lost", "its deadline passed"),
    "PREEMPTED": ("lost", "preempted and not requeued"),
    "FAILED": ("failed", "the job failed without a message; see its log"),
    "COMPLETED": ("lost", "the job ended without a message"),
}


@dataclass
class RunStatus:
    """State and progress of a run, or of a sweep point that has not started."""

    path: Path
    state: str = "new"
    """One of nanogpt.run_state's, or missing."""
    why: str = ""
    step: int = 0
    steps: int | None = None
    val: float | None = None
    """The last validation loss."""
    best: float | None = None
    """The lowest validation loss."""
    bits_per_byte: float | None = None
    """Bits per byte at the last evaluation."""
    train: float | None = None
    """Training loss at the last evaluation."""
    rate: float | None = None
    """Recent speed in tokens per second."""
    updated: float = 0.0
    """Time of the last write to its files; 0: never."""
    job: str = ""
    log: Path | None = None
    restarts: int = 0
    submission: Submission | None = None
    """The last submission that contains it."""
    index: int = 0
    """Its index in the submission."""
    code: int = 0
    """Exit code if it failed."""

    @property
    def in_progress(self) -> bool:
        return self.state in IN_PROGRESS

    def json_fields(self) -> dict[str, Any]:
        """Return what `format=json` shows of a run. None: unknown, or there is none."""
        return {
            "run": self.path,
            "state": self.state,
            "why": self.why or None,
            "step": self.step,
            "steps": self.steps,
            "val_loss": self.val,
            "best_val_loss": self.best,
            "val_bpb": self.bits_per_byte,
            "train_loss": self.train,
            "tokens_per_s": self.rate,
            "updated_unix_s": self.updated or None,
            "job": self.job or None,
            "log": self.log,
            "restarts": self.restarts,
            "exit_code": self.code or None,
        }


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


def read_points(study: Path, queues: JobQueues | None = None, wanted: set[Path] | None = None) -> list[RunStatus]:
    """Return every point ever submitted in a study's folder, or the `wanted` ones of them, by its last submission, in
    order.
    """
    queues = queues or JobQueues()
    latest: dict[Path, tuple[Submission, int]] = {}
    for submission in read_submissions(study):
        for index, path in enumerate(submission.runs):
            if wanted is None or path in wanted:
                latest[path] = (submission, index)
    points = [read_point(path, submission, index, queues) for path, (submission, index) in latest.items()]
    apply_accounting(points)
    return points


def read_point(path: Path, submission: Submission, index: int, queues: JobQueues) -> RunStatus:
    """Return the status of a submitted point: its own files, the events of its submission, and the queue."""
    events = submission.events(index)
    starts = [event for event in events if event["event"] == "start"]
    point = read_run(path)
    point.submission, point.index, point.log = submission, index, submission.log(index)
    point.restarts, point.job = max(0, len(starts) - 1), submission.job_id(index) or ""
    if starts and (submission.spec.executor == "local" or not point.job):
        point.job = str(starts[-1]["job"])
    ended_well = bool(events) and events[-1].get("state") == "finished"
    if point.state != "finished" and not (point.state == "paused" and ended_well):
        state, why = decide_state(events, query_job(point, queues), bool(point.job))
        point.state, point.why = state, why or (read_failure(path) if state in FAILED else "")
        point.code = events[-1].get("code", 0) if events else 0
    return point


def read_run(path: Path) -> RunStatus:
    """Return the status of a run from the ends of its files, ignoring any submission."""
    status = RunDirectory(path).read_status()
    rows, timing = read_last_rows(path / "metrics.jsonl"), read_last_rows(path / "timing.jsonl", 1024)
    evals = [row for row in rows if "val_loss" in row]
    losses = [row["val_loss"] for row in evals]
    best = status.get("best")
    lowest = as_number(best[0]) if isinstance(best, list) and best else None  # pyright: ignore[reportUnknownArgumentType]
    state, why = read_own_state(path, status)
    return RunStatus(
        path,
        state,
        why,
        step=max([as_count(status.get("step")) or 0, *(int(row["step"]) for row in [*rows, *timing])]),
        steps=as_count(status.get("steps")),
        val=losses[-1] if losses else None,
        best=min([loss for loss in (lowest, *losses) if loss is not None], default=None),
        bits_per_byte=evals[-1].get("val_bpb") if evals else None,
        train=evals[-1].get("train_loss") if evals else None,
        rate=timing[-1].get("tokens_per_second") if timing else None,
        updated=last_change(path),
    )


def read_own_state(path: Path, status: Mapping[str, Any]) -> tuple[str, str]:
    """Return state and reason of a run from its status.json."""
    state = status.get("state")
    if state not in WRITTEN:
        exists = (path / "status.json").exists()
        return ("unknown", "its status.json can't be read") if exists else ("new", "no step yet")
    if state != "running":
        return state, read_failure(path) if state in FAILED else ""
    if status.get("host") == socket.gethostname():
        if is_alive(status.get("pid"), status.get("pid_start")):
            return "running", ""
        return "lost", "its process is gone; the same command continues"
    silent = time.time() - last_change(path)
    if silent > LONG_SILENCE_S:
        return "running", f"on {one_line(status.get('host'))}; no sign of life for {silent / 3600:.0f} hours"
    return "running", ""


def read_failure(path: Path) -> str:
    """Return why a run failed, from the last line of its log."""
    return RunDirectory(path).read_last_log_line() or "no reason in log.txt"


def last_change(path: Path) -> float:
    """Return when a run last wrote a row or its status."""
    return max(mtime(path / name) for name in ("status.json", "timing.jsonl", "metrics.jsonl", "config.json"))


def read_last_rows(path: Path, size: int = 4096) -> list[Row]:
    """Return the last rows of a JSON lines file without reading all of it."""
    rows: list[Row] = []
    with suppress(OSError), open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        for line in file.read().splitlines():
            with suppress(ValueError):
                row: object = from_json(line)
                if is_row(row):
                    rows.append(row)
    return rows


def query_job(point: RunStatus, queues: JobQueues) -> QueueEntry | None:
    """Return the queue's entry of a point, state `GONE` if it has none, or None if Slurm doesn't answer."""
    assert point.submission is not None
    if point.submission.spec.executor == "local":
        alive = queues.is_pool_alive(point.submission) or (point.job != "" and local.is_controller(point.job))
        return QueueEntry("RUNNING" if alive else "GONE", "")
    jobs = queues.slurm_jobs() if point.submission.was_submitted(point.index) else {}
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
    requeued = f"requeued: {last['why']}" if ended else ""
    if job.state in slurm.ACTIVE:
        if not events or ended or job.state in ("PENDING", "REQUEUED", "CONFIGURING"):
            return "queued", requeued or (job.reason if job.reason not in ("None", "") else "")
        return "running", "" if job.state == "RUNNING" else job.state.lower()
    word = job.state.split()[0].rstrip("+") if job.state else "GONE"
    if word in SLURM_END_STATES and not ended:
        return SLURM_END_STATES[word]
    return "lost", requeued or "its job is gone without a message: cancelled, killed or its node lost"


def apply_accounting(points: list[RunStatus]) -> None:
    """Replace the state of lost points that the queue forgot by what sacct recorded, if there is accounting."""
    lost = [p for p in points if p.state == "lost" and p.submission and p.submission.spec.executor == "slurm" and p.job]
    states = slurm.read_accounting([point.job for point in lost])
    for point in lost:
        word = states.get(point.job, "").split()
        if word and word[0].rstrip("+") in SLURM_END_STATES:
            point.state, point.why = SLURM_END_STATES[word[0].rstrip("+")]
