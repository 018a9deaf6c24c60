"""State and progress of every run: from the records of its study if it was submitted, else from its own files."""

import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.find import RunSelection, last_change
from launch.status import JobQueues, PointStatus, read_last_rows, read_points
from launch.study import RECORDS
from launch.submission import find_stray_entries
from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.metrics_file import as_count, as_number
from nanogpt.run_directory import RunDirectory
from nanogpt.run_state import FAILED, OPEN, WRITTEN, is_alive

LONG_SILENCE = 3600.0


@dataclass(frozen=True)
class Progress:
    """Progress of one run, or of a point that hasn't started."""

    path: Path
    state: str
    """One of nanogpt.run_state's, or missing."""
    why: str = ""
    step: int = 0
    steps: int | None = None
    val: float | None = None
    """The last validation loss."""
    best: float | None = None
    bits_per_byte: float | None = None
    """Bits per byte at the last evaluation."""
    train: float | None = None
    """The training loss at the last evaluation."""
    updated: float = 0.0
    """When it last gave a sign of life; 0: never."""
    rate: float | None = None
    """Tokens a second, lately."""
    job: str = ""
    log: Path | None = None
    point: PointStatus | None = field(default=None, compare=False)

    @property
    def in_progress(self) -> bool:
        return self.state in OPEN


def read_progress(found: RunSelection, cluster: JobQueues | None = None) -> tuple[list[Progress], list[str]]:
    """Return all runs, points that haven't started, and messages about records that can't be read."""
    points, problems = read_submitted(found.studies, cluster or JobQueues())
    problems += [f"{one_line(folder)}: this folder can't be read" for folder in found.unreadable]
    known = [read_run_progress(run, points.pop(run.resolve(), None)) for run in found.runs]
    wanted = [folder.resolve() for folder in found.folders]
    rest = [point for path, point in points.items() if any(path.is_relative_to(folder) for folder in wanted)]
    return known + [read_run_progress(relative_to_cwd(point.run), point) for point in rest], problems


def read_submitted(studies: Iterable[Path], cluster: JobQueues) -> tuple[dict[Path, PointStatus], list[str]]:
    """Return the points of studies by run directory, and messages about records that can't be read."""
    points: dict[Path, PointStatus] = {}
    problems: list[str] = []
    for study in studies:
        if (study / RECORDS).is_dir():
            if strays := find_stray_entries(study):
                names = ", ".join(one_line(name) for name in strays[:5])
                problems.append(f"{one_line(study / RECORDS)}: not submissions of this program, ignored: {names}")
            try:
                points |= {point.run.resolve(): point for point in read_points(study, cluster)}
            except (BadCheckpoint, OSError, ValueError, KeyError, TypeError) as error:
                problems.append(f"{one_line(study / RECORDS)}: can't be read: {one_line(error, 200)}")
    return points, problems


def relative_to_cwd(path: Path) -> Path:
    """Return the path relative to the current folder if it is inside."""
    with suppress(ValueError):
        return path.relative_to(Path.cwd())
    return path


def read_run_progress(path: Path, point: PointStatus | None = None) -> Progress:
    """Return the progress of one run. Reads only the ends of its files."""
    run = RunDirectory(path)
    status = run.status()
    rows = read_last_rows(path / "metrics.jsonl")
    timing = read_last_rows(path / "timing.jsonl", 1024)
    evals = [row for row in rows if as_number(row.get("val_loss")) is not None]
    losses = [loss for row in evals if (loss := as_number(row.get("val_loss"))) is not None]
    best = status.get("best")
    lowest = as_number(best[0]) if isinstance(best, list) and best else None  # pyright: ignore[reportUnknownArgumentType]
    state, why = (point.state, point.why) if point else read_own_state(path, status)
    return Progress(
        path=path,
        state=state,
        why=why or (run.last_words() or "no reason in log.txt" if state in FAILED else ""),
        step=max([as_count(status.get("step")) or 0, *(as_count(row.get("step")) or 0 for row in [*rows, *timing])]),
        steps=as_count(status.get("steps")),
        val=losses[-1] if losses else None,
        best=min([loss for loss in (lowest, *losses) if loss is not None], default=None),
        bits_per_byte=as_number(evals[-1].get("val_bpb")) if evals else None,
        train=as_number(evals[-1].get("train_loss")) if evals else None,
        updated=last_change(path),
        rate=as_number(timing[-1].get("tokens_per_second")) if timing else None,
        job=point.job if point else "",
        log=point.log if point else None,
        point=point,
    )


def read_own_state(path: Path, status: dict[str, Any]) -> tuple[str, str]:
    """Return state and reason of a run that was started without a launcher."""
    state = status.get("state")
    if state not in WRITTEN:
        return (
            ("unknown", "its status.json can't be read") if (path / "status.json").exists() else ("new", "no step yet")
        )
    if state != "running":
        return str(state), ""
    silent = time.time() - last_change(path)
    if status.get("host") == socket.gethostname():
        if is_alive(status.get("pid"), status.get("pid_start")):
            return "running", ""
        return "lost", "its process is gone; the same command continues"
    if silent > LONG_SILENCE:
        return "running", f"on {one_line(status.get('host'))}; no sign of life for {silent / 3600:.0f} hours"
    return "running", ""
