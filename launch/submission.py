"""What was submitted, on disk: the frozen configs, where the code is, the jobs, and what became of each point.

<study>/.launch/<number>/
  submission.json     how: launcher, resources, code, working directory, interpreter, command, jobs
  points.jsonl        one line a point: its run directory and its whole config
  events/<index>.jsonl   of a point: every start, and how it ended; written where it runs
  exits/                 what each rank of an attempt ended with
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

from launch.requeue_policy import State
from launch.study import RECORDS, Member, Study
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.entry_names import parse_number
from nanogpt.errors import BadCheckpoint, BadEnvironment, BadInput, one_line
from nanogpt.files import append, from_json, hold_lock, list_entries, read_text, write, write_atomic
from nanogpt.schema import ConfigModel

Event = dict[str, Any]
LONGEST = 4096  # bytes of a path on Linux


class Job(ConfigModel):
    """One job array: its id, empty while it is being handed over, its unique name, and which points it holds."""

    id: str
    name: str
    first: int
    count: int


class Facts(ConfigModel):
    """How a submission is run."""

    executor: Literal["slurm", "local"]
    launcher: dict[str, Any]
    resources: dict[str, Any]
    code: str
    cwd: str
    logs: str
    python: str
    command: list[str]
    time: float
    jobs: Annotated[tuple[Job, ...], Field(strict=False)]


class Start(ConfigModel):
    """A point begins."""

    model_config = ConfigDict(extra="ignore")

    job: Annotated[str, Field(pattern=r"^[0-9]+(_[0-9]+)?$")]
    step: int
    time: float


class End(ConfigModel):
    """An attempt at a point is over."""

    model_config = ConfigDict(extra="ignore")

    state: State
    why: str
    time: float
    code: int = 0


KINDS: dict[str, type[ConfigModel]] = {"start": Start, "end": End}


class Submission:
    """One submission of a study."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, int(path.name)

    @cached_property
    def facts(self) -> Facts:
        """Raises BadCheckpoint."""
        return schema.read_config(Facts, self.path / "submission.json")

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """Run directory and config of each point. Raises BadCheckpoint."""
        path = self.path / "points.jsonl"
        try:
            points = [from_json(line) for line in read_text(path).splitlines()]
            if not all(is_point(point["run"], point["config"]) for point in points):
                raise ValueError("a point is a run directory and a config")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BadCheckpoint(f"{one_line(path)}: damaged: {one_line(error)}") from None
        return points

    @cached_property
    def runs(self) -> list[Path]:
        """The points' run directories, in order. Raises BadCheckpoint."""
        return [Path(point["run"]) for point in self.points]

    def config(self, index: int) -> TrainConfig:
        """The frozen config of a point. Raises BadCheckpoint, BadInput."""
        return schema.from_stored(TrainConfig, self.points[index]["config"])

    def log(self, index: int, rank: int = 0) -> Path | None:
        """What a rank of a point says, or None when it wasn't started."""
        started = (event["job"] for event in reversed(self.events(index)) if "job" in event)
        job = next(started, None) or self.job_of(index)
        return None if job is None else Path(self.facts.logs) / f"{job}_{rank}_log.out"

    def note(self, index: int, event: str, **facts: Any) -> None:
        """Add to what became of a point."""
        folder = self.path / "events"
        folder.mkdir(exist_ok=True)
        append(folder / f"{index}.jsonl", json.dumps({"event": event, "time": time.time()} | facts))

    def events(self, index: int) -> list[Event]:
        """What became of a point, oldest first."""
        events: list[Event] = []
        with suppress(OSError):
            for line in read_text(self.path / "events" / f"{index}.jsonl", "replace").splitlines():
                with suppress(ValueError, TypeError, KeyError):  # torn by a power cut
                    event = from_json(line)
                    KINDS[event["event"]].model_validate(event)
                    events.append(event)
        return events

    def hand_over(self, name: str, first: int, count: int, submit: Callable[[], str]) -> None:
        """Submit some of the points; its name is on disk before, so a job is found again that this process didn't live
        to take note of.
        """
        jobs = self.facts.jobs
        self.save((*jobs, Job(id="", name=name, first=first, count=count)))
        try:
            taken = submit()
        except BadInput:  # refused: there is nothing to be found again
            self.save(jobs)
            raise
        self.save((*jobs, Job(id=taken, name=name, first=first, count=count)))

    def find_lost(self, find: Callable[[str], str | None]) -> None:
        """Ask for the ids of jobs that were handed over by a process that was killed meanwhile."""
        jobs = self.facts.jobs
        found = tuple(job if job.id else job.model_copy(update={"id": find(job.name) or ""}) for job in jobs)
        if found != jobs:
            self.save(found)

    def save(self, jobs: tuple[Job, ...]) -> None:
        """Note which jobs there are."""
        self.facts = self.facts.model_copy(update={"jobs": jobs})
        write_atomic(self.path / "submission.json", schema.to_json(self.facts))

    def handed_over(self, index: int) -> bool:
        """Whether a point was, or may have been."""
        return any(job.first <= index < job.first + job.count for job in self.facts.jobs)

    def job_of(self, index: int) -> str | None:
        """`123_4`, or None for what was never handed over."""
        job = next((job for job in self.facts.jobs if job.first <= index < job.first + job.count), None)
        return f"{job.id}_{index - job.first}" if job and job.id else None


def is_point(run: object, config: object) -> bool:
    return isinstance(run, str) and "\0" not in run and len(run) < LONGEST and isinstance(config, dict)


@contextmanager
def records(study: Study) -> Generator[Path, None, None]:
    """The study's records, made if needed; while inside no other command submits. Raises BadEnvironment, OSError."""
    study.path.mkdir(parents=True, exist_ok=True)
    study.logs.mkdir(exist_ok=True)
    study.records.mkdir(mode=0o700, exist_ok=True)
    refuse_others(study.records)
    with hold_lock(study.records / "lock", wait=True):
        yield study.records


def refuse_others(folder: Path) -> None:
    """Jobs run what is in here, so nobody else may write to it. Raises BadEnvironment."""
    about = folder.lstat()
    if about.st_uid != os.getuid():
        raise BadEnvironment(f"{one_line(folder)}: belongs to another user (uid {about.st_uid})")
    if not stat.S_ISDIR(about.st_mode) or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadEnvironment(f"{one_line(folder)}: must be a folder that only its owner can write to; chmod go-w it")


def create(study: Study, members: list[Member], facts: Facts) -> Submission:
    """Freeze points, on disk when this returns; nothing is handed over yet. Raises OSError."""
    number = 1 + max((parse_number(path.name) or 0 for path in list_entries(study.records)), default=0)
    path = study.records / str(number)
    path.mkdir()
    lines = [
        json.dumps({"run": str(member.run.resolve()), "config": member.config.model_dump(mode="json")})
        for member in members
    ]
    write(path / "points.jsonl", "\n".join(lines) + "\n")
    submission = Submission(path)
    submission.facts = facts
    submission.save(())
    return submission


def submissions(study: Path) -> list[Submission]:
    """All of a study, oldest first; those that were cut short before anything was handed over are left out."""
    folder = study / RECORDS
    named = [path for path in list_entries(folder) if parse_number(path.name)]
    whole = [Submission(path) for path in named if (path / "submission.json").exists()]
    return sorted(whole, key=lambda one: one.number)


def stray_submissions(study: Path) -> list[str]:
    """Return the names among a study's records that look like numbers but were not written by this program."""
    names = (path.name for path in list_entries(study / RECORDS))
    return [name for name in names if name[:1].isdigit() and not parse_number(name)]
