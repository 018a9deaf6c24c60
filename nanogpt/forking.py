"""Fork a run: a new run with other settings starts from its checkpoint, optimizer state and rows."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from nanogpt import schema
from nanogpt import tokenizer as tokenizers
from nanogpt.checkpoint import Checkpoints, load_verified
from nanogpt.config import TrainConfig
from nanogpt.entry_names import parse_sample_step, parse_step, step_name
from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.files import fsync, list_entries
from nanogpt.run_identity import read_starts
from nanogpt.tracking.origin import Origin, ParentRun, get_run_id, new_id, write_origin

HARMLESS = ("model.name", "model.dropout", "model.init", "model.zero_init")
NEEDED = ("optimizer.name", "data.tokenizer", "data.vocab_size")
FILES = ("metrics.jsonl", "timing.jsonl", tokenizers.FILE)


def check_fork(parent: TrainConfig, config: TrainConfig, path: Path) -> None:
    """Raise BadCheckpoint naming each key whose change makes the parent's checkpoint unusable."""
    before, now = dict(schema.iter_values(parent)), dict(schema.iter_values(config))
    needed = [
        key for key in now if key in NEEDED or (key.startswith(("model.", "parametrization.")) and key not in HARMLESS)
    ]
    wrong = [
        f"{key} (was {one_line(before[key])}, now {one_line(now[key])})" for key in needed if before[key] != now[key]
    ]
    if wrong:
        raise BadCheckpoint(f"{one_line(path)}: its checkpoint can't be used with other values: {', '.join(wrong)}")


def copy_parent(parent: Path, source: Path, path: Path) -> Origin:
    """Copy `source`, a checkpoint of a run, and the rows up to it into a new run directory that the caller has locked.

    The caller writes the config last; a fork without a config is copied again. Raises BadCheckpoint, OSError.
    """
    found = parse_step(source.name) or 0
    folder = path / "checkpoints"
    partial = folder / f".tmp-{step_name(found)}"
    for rest in (partial, folder / source.name):
        shutil.rmtree(rest, ignore_errors=True)
    for name in FILES:
        with suppress(FileNotFoundError):
            shutil.copyfile(parent / name, path / name)
    (path / "samples").mkdir(exist_ok=True)
    for file in list_entries(parent / "samples"):
        if (drawn := parse_sample_step(file.name)) is not None and drawn <= found:
            shutil.copyfile(file, path / "samples" / file.name)
    try:
        shutil.copytree(source, partial)
        for file in partial.iterdir():
            fsync(file)
    except (FileNotFoundError, shutil.Error):  # the parent trains, and has removed it meanwhile
        raise BadCheckpoint(f"{one_line(source)}: changed while it was copied; the same command tries again") from None
    os.replace(partial, folder / source.name)
    fsync(folder)
    Checkpoints(folder).mark.touch()
    born = next(iter(read_starts(parent)), {})
    return write_origin(path, new_id(), ParentRun(id=get_run_id(parent, born), path=str(parent.resolve()), step=found))


def choose_checkpoint(parent: Path, step: int | None) -> Path:
    """Return the folder of the verified checkpoint of a step, or of the newest. Raises BadCheckpoint."""
    checkpoints = Checkpoints(parent / "checkpoints")
    if step is None:
        loaded, _ = checkpoints.load_newest()
        if loaded is None:
            raise BadCheckpoint(f"{one_line(parent)}: no checkpoint yet, so there is nothing to fork")
        return loaded.path
    if step not in checkpoints.steps():
        there = ", ".join(map(str, checkpoints.steps())) or "none"
        raise BadCheckpoint(f"resume.step={step}: {one_line(parent)} has no checkpoint of this step; there: {there}")
    return load_verified(checkpoints.path(step)).path
