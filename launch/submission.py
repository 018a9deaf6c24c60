"""A submission on disk: frozen configs, where the code is, the jobs, and the events of each point.

<study>/.launch/<number>/
  submission.json        launcher, resources, code, working directory, interpreter, command, jobs
  points.jsonl           one line per point: run directory and config
  events/<index>.jsonl   starts and ends of a point, written where it runs
  exits/                 exit code and reason of each rank of an attempt
"""

import json
import os
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from cli.launcher_config import LocalLauncher, SlurmLauncher
from launch.requeue_policy import Outcome
from launch.study import RECORDS, PlannedRun, Study
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.entry_names import parse_number
from nanogpt.errors import BadCheckpoint, BadEnvironment, BadInput, one_line
from nanogpt.files import append_line, from_json, hold_lock, list_entries, read_text, write_atomic, write_file
from nanogpt.schema import ConfigModel

Event = dict[str, Any]
MAX_PATH_BYTES = 4096  # bytes of a path on Linux


class JobArray(ConfigModel):
    """One job array: its id (empty until Slurm has confirmed it), its unique name, and the points it holds."""

    id: str
    name: str
    first: int
    count: int


class SubmissionSpec(ConfigModel):
    """Launcher, resources, code, command and jobs of a submission."""

    executor: Literal["slurm", "local"]
    launcher: dict[str, Any]
    resources: dict[str, Any]
    code: str
    cwd: str
    logs: str
    python: str
    command: list[str]
    time: float
    jobs: Annotated[tuple[JobArray, ...], Field(strict=False)]


class StartEvent(ConfigModel):
    """An attempt at a point started."""

    model_config = ConfigDict(extra="ignore")

    job: Annotated[str, Field(pattern=r"^[0-9]+(_[0-9]+)?$")]
    step: int
    time: float


class EndEvent(ConfigModel):
    """An attempt at a point ended."""

    model_config = ConfigDict(extra="ignore")

    state: Outcome
    why: str
    time: float
    code: int = 0


EVENT_TYPES: dict[str, type[ConfigModel]] = {"start": StartEvent, "end": EndEvent}


class Submission:
    """One submission of a study."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, int(path.name)

    @cached_property
    def spec(self) -> SubmissionSpec:
        """Return launcher, resources, code and jobs, from submission.json. Raises BadCheckpoint."""
        return schema.read_config(SubmissionSpec, self.path / "submission.json")

    @cached_property
    def launcher(self) -> LocalLauncher | SlurmLauncher:
        """Return the launcher's settings. Raises BadCheckpoint."""
        kind = {"local": LocalLauncher, "slurm": SlurmLauncher}[self.spec.executor]
        try:
            return schema.from_stored(kind, self.spec.launcher)
        except BadInput as error:
            raise BadCheckpoint(f"{one_line(self.path / 'submission.json')}: damaged: launcher.{error}") from None

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """Return the run directory and config of each point. Raises BadCheckpoint."""
        path = self.path / "points.jsonl"
        try:
            points = [from_json(line) for line in read_text(path).splitlines()]
            if not all(is_stored_point(point["run"], point["config"]) for point in points):
                raise ValueError("a point is a run directory and a config")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BadCheckpoint(f"{one_line(path)}: damaged: {one_line(error)}") from None
        return points

    @cached_property
    def runs(self) -> list[Path]:
        """Return the run directories of the points, in order. Raises BadCheckpoint."""
        return [Path(point["run"]) for point in self.points]

    def config(self, index: int) -> TrainConfig:
        """Return the frozen config of a point. Raises BadCheckpoint, BadInput."""
        return schema.from_stored(TrainConfig, self.points[index]["config"])

    @property
    def points_per_job(self) -> int:
        """Return how many points share a job of Slurm; on this machine each has a process of its own."""
        wanted = self.spec.resources.get("points_per_job", 1) if self.spec.executor == "slurm" else 1
        return min(wanted, len(self.points))

    def tasks(self, index: int) -> range:
        """Return the numbers of the tasks of srun that are the ranks of a point that shares its job."""
        ranks = self.spec.resources["tasks_per_node"]
        first = index % self.points_per_job * ranks
        return range(first, first + ranks)

    def log(self, index: int, rank: int = 0) -> Path | None:
        """Return the log file of a rank of a point, or None if the point was never started."""
        started = (event["job"] for event in reversed(self.events(index)) if "job" in event)
        job = next(started, None) or self.job_id(index)
        task = rank if self.points_per_job == 1 else self.tasks(index)[0] + rank
        return None if job is None else Path(self.spec.logs) / f"{job}_{task}_log.out"

    def add_event(self, index: int, event: str, **facts: Any) -> None:
        folder = self.path / "events"
        folder.mkdir(exist_ok=True)
        append_line(folder / f"{index}.jsonl", json.dumps({"event": event, "time": time.time()} | facts))

    def events(self, index: int) -> list[Event]:
        """Return the events of a point, oldest first."""
        events: list[Event] = []
        with suppress(OSError):
            for line in read_text(self.path / "events" / f"{index}.jsonl", "replace").splitlines():
                with suppress(ValueError, TypeError, KeyError):  # torn by a power cut
                    event = from_json(line)
                    EVENT_TYPES[event["event"]].model_validate(event)
                    events.append(event)
        return events

    def submit_points(self, name: str, first: int, count: int, submit: Callable[[], str]) -> None:
        """Submit some of the points with `submit`. The job's name is stored first, so that the job can be found by it
        if this process dies before it stores the id.
        """
        jobs = self.spec.jobs
        self.save_jobs((*jobs, JobArray(id="", name=name, first=first, count=count)))
        try:
            job_id = submit()
        except BadInput:  # refused: there is no job to find
            self.save_jobs(jobs)
            raise
        self.save_jobs((*jobs, JobArray(id=job_id, name=name, first=first, count=count)))

    def recover_job_ids(self, find: Callable[[str], str | None]) -> None:
        """Look up with `find` the ids of jobs that were submitted by a process that died before storing them."""
        jobs = self.spec.jobs
        found = tuple(job if job.id else job.model_copy(update={"id": find(job.name) or ""}) for job in jobs)
        if found != jobs:
            self.save_jobs(found)

    def save_jobs(self, jobs: tuple[JobArray, ...]) -> None:
        self.spec = self.spec.model_copy(update={"jobs": jobs})
        write_atomic(self.path / "submission.json", schema.to_json(self.spec))

    def was_submitted(self, index: int) -> bool:
        """Return whether a point was, or may have been, submitted."""
        return any(job.first <= index < job.first + job.count for job in self.spec.jobs)

    def job_id(self, index: int) -> str | None:
        """Return the job of a point as `123_4`, or None if it was never submitted."""
        job = next((job for job in self.spec.jobs if job.first <= index < job.first + job.count), None)
        return f"{job.id}_{(index - job.first) // self.points_per_job}" if job and job.id else None


def is_stored_point(run: object, config: object) -> bool:
    return isinstance(run, str) and "\0" not in run and len(run) < MAX_PATH_BYTES and isinstance(config, dict)


@contextmanager
def lock_records(study: Study) -> Generator[Path, None, None]:
    """Create the folder of a study's submissions and hold its lock. Raises BadEnvironment, OSError."""
    study.path.mkdir(parents=True, exist_ok=True)
    study.logs.mkdir(exist_ok=True)
    study.records.mkdir(mode=0o700, exist_ok=True)
    check_only_owner_writes(study.records)
    with hold_lock(study.records / "lock", wait=True):
        yield study.records


def check_only_owner_writes(folder: Path) -> None:
    """Raise BadEnvironment if another user could write to `folder`: jobs execute code that is stored in it."""
    about = folder.lstat()
    if about.st_uid != os.getuid():
        raise BadEnvironment(f"{one_line(folder)}: belongs to another user (uid {about.st_uid})")
    if not stat.S_ISDIR(about.st_mode) or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadEnvironment(f"{one_line(folder)}: must be a folder that only its owner can write to; chmod go-w it")


def create_submission(study: Study, planned_runs: list[PlannedRun], spec: SubmissionSpec) -> Submission:
    """Write the points of a new submission; nothing is submitted yet. Raises OSError."""
    number = 1 + max((parse_number(path.name) or 0 for path in list_entries(study.records)), default=0)
    path = study.records / str(number)
    path.mkdir()
    lines = [
        json.dumps({"run": str(planned.path.resolve()), "config": planned.config.model_dump(mode="json")})
        for planned in planned_runs
    ]
    write_file(path / "points.jsonl", "\n".join(lines) + "\n")
    submission = Submission(path)
    submission.spec = spec
    submission.save_jobs(())
    return submission


def read_submissions(study: Path) -> list[Submission]:
    """Return the complete submissions of a study, oldest first."""
    folder = study / RECORDS
    named = [path for path in list_entries(folder) if parse_number(path.name)]
    complete = [Submission(path) for path in named if (path / "submission.json").exists()]
    return sorted(complete, key=lambda submission: submission.number)


def find_stray_entries(study: Path) -> list[str]:
    """Return the names in the folder of submissions that look like numbers but were not written by this program."""
    names = (path.name for path in list_entries(study / RECORDS))
    return [name for name in names if name[:1].isdigit() and not parse_number(name)]
