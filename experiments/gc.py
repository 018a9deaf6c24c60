"""`nanogpt gc`: what could be deleted and how much it frees; deletes only with delete=true.

Never a run's newest or best checkpoint, its rows, or anything of a run in progress.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.find import find_runs, read_statuses
from launch.status import RunStatus
from launch.study import RECORDS
from launch.submission import read_submissions
from nanogpt.comparability import best_step
from nanogpt.config import GcConfig, TrainConfig, Waste
from nanogpt.console import print_text
from nanogpt.entry_names import HIDDEN_STEP, parse_run_name, parse_step
from nanogpt.errors import BadEnvironment, LabError, one_line
from nanogpt.files import hold_lock, list_entries, read_json
from nanogpt.formatting import format_count, format_table
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory

logger = logging.getLogger(__name__)

KINDS: dict[Waste, str] = {
    "leftovers": "half-written files of processes that were killed",
    "checkpoints": "of finished runs, all but the newest, the best and those of checkpoint.keep_every",
    "code": "frozen code that no unfinished point needs",
    "damaged": "checkpoints that were found corrupt and set aside",
    "attempts": "runs that a later attempt with new_attempt=true has finished",
    "empty": "runs that ended before their first checkpoint and first evaluation after a step",
}
MAX_PATHS = 20  # paths of a kind
DELETING = ".del-"  # how the names of folders begin whose deletion has begun


@dataclass(frozen=True)
class Garbage:
    """A file or folder that could be deleted, and the run it belongs to, if any."""

    kind: Waste
    path: Path
    size: int
    run: Path | None = None


def collect_garbage(config: GcConfig) -> int:
    """Print what could be deleted; delete what is selected. Return the exit code. Raises BadInput."""
    found = find_runs(config)
    statuses, problems = read_statuses(found)
    quiet = [status for status in statuses if not status.in_progress and status.path.is_dir()]
    things = [thing for status in quiet for thing in find_run_garbage(status, statuses)]
    if not problems:  # else it isn't known which points still need their code
        things += [thing for study in found.studies for thing in find_study_garbage(study, statuses)]
    print_garbage(things, config)
    for problem in problems:
        logger.warning(problem)
    busy = sum(status.in_progress for status in statuses)
    if busy:
        logger.info(f"runs on their way: {busy}; nothing of theirs is listed")
    chosen = [thing for thing in things if thing.kind in config.what]
    if config.delete:
        return delete_all(chosen, statuses)
    if chosen:
        print_text(f"nothing was deleted; delete=true deletes {format_count(sum(t.size for t in chosen), 'G')}B")
    return 0


def delete_all(things: Sequence[Garbage], statuses: Sequence[RunStatus]) -> int:
    """Delete what no process holds. Return 5 if some of it can't be deleted, else 0."""
    freed, code = 0, 0
    for thing in things:
        try:
            why = delete_locked(thing, statuses)
        except OSError as error:
            why, code = one_line(error.strerror or error), BadEnvironment.exit_code
        if why:
            print_text(f"left: {one_line(thing.path)}: {why}")
        else:
            freed += thing.size
    print_text(f"deleted: {format_count(freed, 'G')}B freed")
    return code


def find_run_garbage(run: RunStatus, statuses: Sequence[RunStatus]) -> Iterator[Garbage]:
    for kind, path in classify_run_garbage(run, statuses):
        yield Garbage(kind, path, disk_usage(path), run.path)


def classify_run_garbage(run: RunStatus, statuses: Sequence[RunStatus]) -> Iterator[tuple[Waste, Path]]:
    """Yield kind and path. Whole runs come alone."""
    if is_superseded(run.path, statuses):
        yield "attempts", run.path
        return
    if is_empty(run):
        yield "empty", run.path
        return
    folder = run.path / "checkpoints"
    partial = [*list_hidden(folder, "tmp"), *list_hidden(folder, "del")]
    for path in [*partial, *replaced_checkpoints(folder), *sorted(run.path.glob(".*.tmp"))]:
        yield "leftovers", path
    for path in list_hidden(folder, "bad"):
        yield "damaged", path
    for path in find_extra_checkpoints(run.path) if run.state == "finished" else []:
        yield "checkpoints", path


def list_hidden(folder: Path, kind: str) -> list[Path]:
    """Return the entries of a checkpoints folder that are named `.KIND-step-…`, exactly as training names them."""
    return [
        path for path in list_entries(folder) if (match := HIDDEN_STEP.fullmatch(path.name)) and match["kind"] == kind
    ]


def replaced_checkpoints(folder: Path) -> list[Path]:
    return [path for path in list_hidden(folder, "old") if (folder / path.name.removeprefix(".old-")).exists()]


def is_superseded(path: Path, statuses: Sequence[RunStatus]) -> bool:
    mine = parse_run_name(path.name)
    if mine is None:
        return False
    names = (run.path.name for run in statuses if run.path.parent == path.parent and run.state == "finished")
    others = (parts for name in names if (parts := parse_run_name(name)))
    return any(other[:2] == mine[:2] and other[2] > mine[2] for other in others)


def is_empty(run: RunStatus) -> bool:
    """Return whether a run has no checkpoint to continue from and no result."""
    if run.state == "finished" or any((run.path / "checkpoints").glob("*step-*")):
        return False
    if (run.path / RECORDS).exists() or (run.path / "incidents").exists():
        return False
    return not any("val_loss" in row and row["step"] > 0 for row in read_rows(run.path / "metrics.jsonl"))


def find_extra_checkpoints(run: Path) -> list[Path]:
    """Return checkpoints that neither resuming nor sampling would use."""
    entries = list_entries(run / "checkpoints")
    found = {step: path for path in entries if (step := parse_step(path.name)) is not None}
    states: dict[int, dict[str, Any]] = {}
    for step, path in found.items():
        with suppress(LabError):
            states[step] = read_json(path / "state.json")
    try:
        config: TrainConfig = RunDirectory(run).read_config()
    except LabError:
        return []
    every = config.checkpoint.keep_every
    kept = {max(found, default=0), best_step(states)}
    return [path for step, path in sorted(found.items()) if step not in kept and (every is None or step % every)]


def find_study_garbage(study: Path, statuses: Sequence[RunStatus]) -> Iterator[Garbage]:
    """Yield copies of the code for jobs that are all done."""
    for path in list_entries(study):
        if path.name.startswith(DELETING):
            yield Garbage("leftovers", path, disk_usage(path), path)
    folder = study / RECORDS / "code"
    open_points = {run.path.resolve() for run in statuses if run.state != "finished"}
    needed = {
        Path(submission.spec.code).resolve()
        for submission in read_submissions(study)
        if any(run.resolve() in open_points or not run.exists() for run in submission.runs)
    }
    for path in list_entries(folder):
        if path.is_dir() and path.resolve() not in needed:
            yield Garbage("code", path, disk_usage(path))


def disk_usage(path: Path) -> int:
    """Return bytes on disk; links are not followed."""
    total = 0
    inside = (Path(top) / name for top, _, names in os.walk(path) for name in names)
    for file in inside if path.is_dir() and not path.is_symlink() else [path]:
        with suppress(OSError):  # deleted meanwhile
            total += file.lstat().st_size
    return total


def print_garbage(things: Sequence[Garbage], config: GcConfig) -> None:
    """Print one line per kind, then the paths."""
    rows = [
        (kind, str(len(own)), f"{format_count(sum(thing.size for thing in own), 'G')}B", about)
        for kind, about in KINDS.items()
        for own in [[thing for thing in things if thing.kind == kind]]
    ]
    print_text(format_table("what could be deleted", ("what", "things", "frees", "which"), rows))
    for kind in config.what:
        own = sorted((thing for thing in things if thing.kind == kind), key=lambda thing: -thing.size)
        for thing in own[:MAX_PATHS]:
            print_text(f"{kind}: {one_line(thing.path)} ({format_count(thing.size, 'G')}B)")
        if len(own) > MAX_PATHS:
            print_text(f"{kind}: and {len(own) - MAX_PATHS} more")


def delete_locked(thing: Garbage, statuses: Sequence[RunStatus]) -> str:
    """Delete under the lock of the run or of the study's submissions, so that nothing just started or submitted is
    deleted. Return why it is left, or an empty string. Raises OSError.
    """
    records = thing.path.parents[1]  # of frozen code
    with hold_lock(thing.run / ".lock" if thing.run else records / "lock", wait=False) as mine:
        if not mine:
            return "a process is training here" if thing.run else "a command is submitting here"
        if thing.run is None and thing.path not in (
            other.path for other in find_study_garbage(records.parent, statuses)
        ):
            return "was submitted just now"
        delete_path(thing.path)
    return ""


def delete_path(path: Path) -> None:
    """Delete a file or a folder. A folder is renamed first, so that no half-deleted one is taken for complete."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    doomed = path if path.name.startswith(".") else path.with_name(DELETING + path.name)
    if doomed != path:
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
    shutil.rmtree(doomed)
