"""Which run directories a person means: by folder, by name under `runs_dir`, by glob. Nothing in them is read here."""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.study import RECORDS
from nanogpt.config import TargetsConfig
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.files import list_entries, mtime

DEPTH = 2  # folders below one that is named in which runs are looked for: runs/, a study, its runs


@dataclass(frozen=True)
class Found:
    """Run directories, and the studies whose records say more about them than they do themselves."""

    runs: list[Path]
    studies: list[Path]
    """Folders that runs are in."""
    asked: list[Path]
    """What was named, as folders."""
    closed: list[Path]
    """Folders in there that this user may not look into."""


def find(config: TargetsConfig, latest: bool = False) -> Found:
    """The runs that are meant, in order; without targets all under runs_dir, or with `latest` those of the study, or
    the run, that was written to last. Raises BadInput.
    """
    asked = [folder for target in config.targets for folder in folders(target, config.runs_dir)]
    if not config.targets:
        everything = Path(config.runs_dir)
        asked = [newest(everything)] if latest and os.path.isdir(everything) else [everything]
    closed: list[Path] = []
    every: dict[Path, Path] = {}
    for run in (run for folder in asked for run in below(folder, closed)):
        every.setdefault(run.resolve(), run)  # a link to a run is no second one
    runs = list(every.values())
    studies = list(dict.fromkeys(place for folder in asked for place in places(folder, runs)))
    if not runs and not any(is_study(study) for study in studies):
        named = ", ".join(map(str, config.targets)) or f"runs_dir={config.runs_dir}"
        why = f"{one_line(closed[0])} can't be read" if closed else "no runs; train some first: python train.py"
        raise BadInput(f"{one_line(named, 200)}: {why}")
    return Found(runs, studies, asked, list(dict.fromkeys(closed)))


def folders(target: str, runs_dir: str) -> list[Path]:
    """The folders a word stands for. Raises BadInput with the nearest name."""
    for path in (Path(target), Path(runs_dir) / target):
        if os.path.isdir(path):
            if not os.access(path, os.R_OK | os.X_OK):
                raise BadInput(f"{one_line(path)}: this folder can't be read: permission denied")
            if not holds_runs(path):
                raise BadInput(f"{one_line(path)}: not a run directory, and none in it{known(target, runs_dir)}")
            return [path]
    for pattern in (target, str(Path(runs_dir) / target)):
        found = [Path(path) for path in sorted(glob.glob(pattern)) if os.path.isdir(path)]
        found = [path for path in found if holds_runs(path)]
        if found:
            return found
    raise BadInput(f"{one_line(target)}: no such study or run{known(target, runs_dir)}")


def known(target: str, runs_dir: str) -> str:
    """The nearest study or run, as the end of a message."""
    runs = list(below(Path(runs_dir)))
    return hint(Path(target).name, dict.fromkeys(path.name for run in runs for path in (run.parent, run)))


# os.path's questions say no where pathlib's raise: of a folder that can't be looked into


def is_run(path: Path) -> bool:
    return os.path.isfile(path / "config.json")


def is_study(path: Path) -> bool:
    return os.path.isdir(path / RECORDS)


def holds_runs(path: Path) -> bool:
    return is_run(path) or is_study(path) or any(below(path))


def below(folder: Path, closed: list[Path] | None = None, depth: int = DEPTH) -> Iterator[Path]:
    """The run directories in a folder: itself, or those that it holds. What can't be read is added to `closed`."""
    if is_run(folder):
        yield folder
    elif depth and os.path.isdir(folder):
        if not os.access(folder, os.R_OK | os.X_OK):
            if closed is not None:
                closed.append(folder)
            return
        for path in list_entries(folder):
            if os.path.isdir(path) and not path.name.startswith("."):
                yield from below(path, closed, depth - 1)


def places(folder: Path, runs: list[Path]) -> Iterator[Path]:
    """The folders whose records may be about runs of `folder`: it, what it holds, what holds it."""
    yield folder
    for run in runs:
        if run.is_relative_to(folder):
            yield from (run, run.parent)
    if os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK):
        yield from (path for path in list_entries(folder) if is_study(path))


def newest(runs_dir: Path) -> Path:
    """The study, or the run that is in none, that was written to last; `runs_dir` itself when there is none."""
    runs = list(below(runs_dir))
    if not runs:
        return runs_dir
    last = max(runs, key=touched)
    return last if last.parent == runs_dir else last.parent


def touched(run: Path) -> float:
    """When a run last wrote a row or its status."""
    return max(mtime(run / name) for name in ("status.json", "timing.jsonl", "metrics.jsonl", "config.json"))
