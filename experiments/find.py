"""Find the runs that targets mean (folders, names under `runs_dir`, globs), and read the status of each."""

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from launch.status import JobQueues, RunStatus, last_change, read_points, read_run
from launch.study import RECORDS
from launch.submission import find_stray_entries
from nanogpt.config import TargetsConfig
from nanogpt.console import format_command
from nanogpt.errors import BadCheckpoint, BadInput, hint, one_line
from nanogpt.files import list_entries

DEPTH = 2  # levels below a named folder that are searched: runs/, a study, its runs


@dataclass(frozen=True)
class RunSelection:
    """Run directories, and the studies that may have records about them."""

    runs: list[Path]
    studies: list[Path]
    """Folders that contain runs."""
    folders: list[Path]
    """The folders that the targets name."""
    unreadable: list[Path]
    """Folders that this user may not read."""


def find_runs(config: TargetsConfig, latest: bool = False) -> RunSelection:
    """Return the selected runs, in order; without targets all under runs_dir, or with `latest` those of the study or
    run that was written to last. Raises BadInput.
    """
    asked = [folder for target in config.targets for folder in expand_target(target, config.runs_dir)]
    if not config.targets:
        everything = Path(config.runs_dir)
        asked = [newest_study(everything)] if latest and os.path.isdir(everything) else [everything]
    closed: list[Path] = []
    every: dict[Path, Path] = {}
    for run in (run for folder in asked for run in runs_below(folder, closed)):
        every.setdefault(run.resolve(), run)  # a link to a run is not another run
    runs = list(every.values())
    studies = list(dict.fromkeys(parent for folder in asked for parent in record_folders(folder, runs)))
    if not runs and not any(is_study(study) for study in studies):
        named = ", ".join(map(str, config.targets)) or f"runs_dir={config.runs_dir}"
        why = (
            f"{one_line(closed[0])} can't be read"
            if closed
            else f"no runs; train some first: {format_command('train')}"
        )
        raise BadInput(f"{one_line(named, 200)}: {why}")
    return RunSelection(runs, studies, asked, list(dict.fromkeys(closed)))


def expand_target(target: str, runs_dir: str) -> list[Path]:
    """Return the folders that a target names. Raises BadInput with the nearest name."""
    for path in (Path(target), Path(runs_dir) / target):
        if os.path.isdir(path):
            if not os.access(path, os.R_OK | os.X_OK):
                raise BadInput(f"{one_line(path)}: this folder can't be read: permission denied")
            if not holds_runs(path):
                raise BadInput(f"{one_line(path)}: not a run directory, and none in it{hint_names(target, runs_dir)}")
            return [path]
    for pattern in (target, str(Path(runs_dir) / target)):
        found = [Path(path) for path in sorted(glob.glob(pattern)) if os.path.isdir(path)]
        found = [path for path in found if holds_runs(path)]
        if found:
            return found
    raise BadInput(f"{one_line(target)}: no such study or run{hint_names(target, runs_dir)}")


def hint_names(target: str, runs_dir: str) -> str:
    """Return the nearest study or run as the end of a message."""
    runs = list(runs_below(Path(runs_dir)))
    return hint(Path(target).name, dict.fromkeys(path.name for run in runs for path in (run.parent, run)))


# os.path returns False where pathlib raises, for a folder that can't be read


def is_run(path: Path) -> bool:
    return os.path.isfile(path / "config.json")


def is_study(path: Path) -> bool:
    return os.path.isdir(path / RECORDS)


def holds_runs(path: Path) -> bool:
    return is_run(path) or is_study(path) or any(runs_below(path))


def runs_below(folder: Path, closed: list[Path] | None = None, depth: int = DEPTH) -> Iterator[Path]:
    """Yield the run directories in a folder: itself, or those it holds. Folders that can't be read are added to
    `closed`.
    """
    if is_run(folder):
        yield folder
    elif depth and os.path.isdir(folder):
        if not os.access(folder, os.R_OK | os.X_OK):
            if closed is not None:
                closed.append(folder)
            return
        for path in list_entries(folder):
            if os.path.isdir(path) and not path.name.startswith("."):
                yield from runs_below(path, closed, depth - 1)


def record_folders(folder: Path, runs: list[Path]) -> Iterator[Path]:
    """Yield the folders whose records may be about runs of `folder`: itself, its runs, their parents."""
    yield folder
    for run in runs:
        if run.is_relative_to(folder):
            yield from (run, run.parent)
    if os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK):
        yield from (path for path in list_entries(folder) if is_study(path))


def newest_study(runs_dir: Path) -> Path:
    """Return the study, or run outside any, that was written to last; `runs_dir` if there is none."""
    runs = list(runs_below(runs_dir))
    if not runs:
        return runs_dir
    last = max(runs, key=last_change)
    return last if last.parent == runs_dir else last.parent


def read_statuses(found: RunSelection) -> tuple[list[RunStatus], list[str]]:
    """Return the status of all runs and of points that have not started, and messages about unreadable records.

    A submitted run's status comes from its study's records, that of any other from its files.
    """
    points, problems = read_submitted(found.studies)
    problems += [f"{one_line(folder)}: this folder can't be read" for folder in found.unreadable]
    runs: list[RunStatus] = []
    for run in found.runs:
        point = points.pop(run.resolve(), None)
        runs.append(replace(point, path=run) if point else read_run(run))
    folders = [folder.resolve() for folder in found.folders]
    for path, point in points.items():
        if any(path.is_relative_to(folder) for folder in folders):
            runs.append(replace(point, path=relative_to_cwd(point.path)))
    return runs, problems


def read_submitted(studies: Iterable[Path]) -> tuple[dict[Path, RunStatus], list[str]]:
    """Return the points of studies by run directory, and messages about records that can't be read."""
    queues = JobQueues()
    points: dict[Path, RunStatus] = {}
    problems: list[str] = []
    for study in filter(is_study, studies):
        if strays := find_stray_entries(study):
            names = ", ".join(one_line(name) for name in strays[:5])
            problems.append(f"{one_line(study / RECORDS)}: not submissions of this program, ignored: {names}")
        try:
            points |= {point.path.resolve(): point for point in read_points(study, queues)}
        except (BadCheckpoint, OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{one_line(study / RECORDS)}: can't be read: {one_line(error, 200)}")
    return points, problems


def relative_to_cwd(path: Path) -> Path:
    """Return the path relative to the current folder if it is inside."""
    with suppress(ValueError):
        return path.relative_to(Path.cwd())
    return path
