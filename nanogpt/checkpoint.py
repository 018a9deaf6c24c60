"""Atomic, verified checkpoints: written to a hidden folder, hashed, forced to disk and renamed.

    checkpoints/step-00002000/{model.safetensors, optimizer.safetensors, state.json, manifest.json}
                .tmp-step-… being written, .old-… being replaced, .del-… being removed, .bad-… damaged

The manifest has the size and sha256 of the other files and is written last. No file is a pickle.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import assert_never

from nanogpt.comparability import best_step
from nanogpt.data.shards import file_sha256
from nanogpt.entry_names import HIDDEN_STEP, parse_step, step_name
from nanogpt.errors import BadCheckpoint, BadData, BadEnvironment, one_line
from nanogpt.files import fsync, list_entries, read_json, write_file
from nanogpt.metrics_check import RowsRecord
from nanogpt.safetensors_writer import write_tensors
from nanogpt.schema import ConfigModel

FORMAT = 2  # 1 had no digest of the manifest itself
PARTS = ("model", "optimizer")
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A verified checkpoint in memory."""

    path: Path
    model: Tensors
    optimizer: Tensors
    state: dict[str, Any]


class StateFile(ConfigModel):
    """The keys of state.json that a training reads. Those with a default are absent in older checkpoints."""

    model_config = ConfigDict(extra="ignore")

    step: Annotated[int, Field(ge=0)]
    samples: Annotated[int, Field(ge=0)]
    evaluated: int
    results: dict[str, float]
    best: Annotated[tuple[float, int], Field(strict=False)] | None
    scaler: dict[str, Any]
    data: str = ""
    files: dict[str, str] = Field({})
    arithmetic: dict[str, Any] = Field({})
    measurement: dict[str, Any] = Field({})
    spikes: dict[Literal["losses", "norms", "count"], Any] = Field({})
    skipped: list[int] = Field([])
    metrics: RowsRecord | None = None


class Checkpoints:
    """The checkpoints of one run. Only the process that holds the run's lock may save and clean."""

    def __init__(self, folder: Path, keep: int = 2, keep_every: int | None = None) -> None:
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self.mark = folder.with_name(".saved")
        """Written with the first checkpoint, so that a folder that has lost its checkpoints is recognised."""

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        return sorted(step for path in list_entries(self.folder) if (step := parse_step(path.name)) is not None)

    def list_foreign_entries(self) -> list[str]:
        """Return the names in the folder that are not those of checkpoints. They are ignored."""
        names = (path.name for path in list_entries(self.folder))
        return [name for name in names if parse_step(name) is None and not HIDDEN_STEP.fullmatch(name)]

    def path(self, step: int) -> Path:
        return self.folder / step_name(step)

    def save(self, step: int, tensors: Mapping[str, Tensors], state: str) -> Path:
        """Write a checkpoint with `state`, a JSON text, then remove checkpoints that are not to be kept.

        Older checkpoints are not touched before the final rename. Raises BadEnvironment if the checkpoint cannot be
        written; the older ones are intact.
        """
        final, partial, old = self.path(step), self.hidden_path("tmp", step), self.hidden_path("old", step)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            check_disk_space(self.folder, sum(t.nbytes for part in tensors.values() for t in part.values()))
            write_checkpoint(partial, step, tensors, state)
            if final.exists():  # the same step before its evaluation
                os.replace(final, old)
            os.replace(partial, final)
            fsync(self.folder)
            self.mark.touch()
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            why = error.strerror or one_line(str(error), 200)
            raise BadEnvironment(f"{one_line(final)}: can't be written: {why}; the older ones are intact") from None
        shutil.rmtree(old, ignore_errors=True)
        self.prune()
        return final

    def hidden_path(self, kind: str, step: int) -> Path:
        """Return the hidden folder of a checkpoint, by `kind`: tmp, old, del or bad."""
        return self.folder / f".{kind}-{step_name(step)}"

    def prune(self) -> None:
        """Keep the newest `keep`, the one with the best validation loss, and every multiple of `keep_every`."""
        steps = self.steps()
        kept = {*steps[-self.keep :], self.best_step()}
        for step in steps:
            if step not in kept and (self.keep_every is None or step % self.keep_every):
                doomed = self.hidden_path("del", step)
                with suppress(OSError):  # the next save tries again
                    os.replace(self.path(step), doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def best_step(self) -> int | None:
        """Return the step whose checkpoint has the lowest comparable validation loss, or None."""
        states: dict[int, dict[str, Any]] = {}
        for step in self.steps():
            with suppress(BadCheckpoint):
                states[step] = read_json(self.path(step) / "state.json")
        return best_step(states)

    def load(self, which: Literal["best", "latest"]) -> LoadedCheckpoint:
        """Return the best or the newest good checkpoint; `best` without evaluations is the newest too.

        If a running training removes the checkpoint while it is read, its newer ones are tried. Raises BadCheckpoint.
        """
        while True:
            before = self.steps()
            try:
                match which:
                    case "best":
                        step = self.best_step()
                    case "latest":
                        step = None
                    case _:
                        assert_never(which)
                loaded = load_verified(self.path(step)) if step is not None else self.load_newest()[0]
                break
            except BadCheckpoint:
                if self.steps() == before:
                    raise
        if loaded is None:
            raise BadCheckpoint(f"{one_line(self.folder.parent)}: no checkpoint yet")
        return loaded

    def clean(self) -> None:
        """Remove leftovers of a killed process, and restore a checkpoint that it was replacing."""
        for path in list_entries(self.folder):
            hidden = HIDDEN_STEP.fullmatch(path.name)
            if hidden is None or hidden["kind"] == "bad":
                continue
            if hidden["kind"] == "old" and not (final := self.folder / hidden["step"]).exists():
                os.replace(path, final)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def load_newest(self) -> tuple[LoadedCheckpoint | None, list[BadCheckpoint]]:
        """Return the newest good checkpoint (None without checkpoints), and the errors of newer ones. Only reads.

        Raises BadCheckpoint if there are checkpoints and none is good, because a run never starts over by itself, and
        if the newest was written by a later version of this program.
        """
        bad: list[BadCheckpoint] = []
        for step in reversed(self.steps()):
            try:
                return load_verified(self.path(step)), bad
            except TooNew:
                raise
            except BadCheckpoint as error:
                bad.append(error)
        if bad:
            reasons = "; ".join(map(str, bad))
            raise BadCheckpoint(f"no usable checkpoint: {reasons}; new_attempt=true starts another attempt")
        if self.mark.exists():
            raise BadCheckpoint(
                f"{one_line(self.folder)}: its checkpoints are gone; new_attempt=true starts another attempt"
            )
        return None, []

    def set_aside(self, after: int) -> None:
        """Rename the damaged checkpoints above a step, so that they are ignored. Nothing is deleted."""
        for step in self.steps():
            if step > after:
                aside, number = self.hidden_path("bad", step), 2
                while aside.exists():
                    aside, number = self.hidden_path("bad", step).with_suffix(f".{number}"), number + 1
                os.replace(self.path(step), aside)


class TooNew(BadCheckpoint):
    """A checkpoint of a later version of this program."""


def check_disk_space(folder: Path, size: int) -> None:
    """Raise OSError unless 20 % more space is free than the tensors need."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.2 * size:
        raise OSError(errno.ENOSPC, f"No space left on device, {1.2 * size:,.0f} bytes needed, {free:,} free")


def write_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensors], state: str) -> None:
    """Write a new folder with the four files, the manifest last, and force them to disk. Raises OSError."""
    folder.mkdir(parents=True)
    files: dict[str, Any] = {
        f"{name}.safetensors": write_tensors(folder / f"{name}.safetensors", tensors[name]) for name in PARTS
    }
    write_file(folder / "state.json", state)
    files["state.json"] = {"bytes": len(state.encode()), "sha256": hashlib.sha256(state.encode()).hexdigest()}
    write_file(folder / "manifest.json", seal_manifest({"format": FORMAT, "step": step, "files": files}))
    for name, entry in files.items():
        if (folder / name).stat().st_size != entry["bytes"]:
            raise OSError(errno.EIO, f"{name} has another size than was written")
    fsync(folder)


def seal_manifest(manifest: dict[str, Any]) -> str:
    """Return a manifest as text with its own digest, so that damage is not mistaken for another format."""
    return json.dumps(manifest | {"sha256": manifest_digest(manifest)}, indent=1) + "\n"


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 over a manifest without its own digest."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def load_verified(path: Path) -> LoadedCheckpoint:
    """Verify all files of a checkpoint, then load it. Raises BadCheckpoint naming the file that is wrong."""
    manifest = read_json(path / "manifest.json")
    if manifest.get("sha256") != manifest_digest(manifest):
        raise BadCheckpoint(
            f"{one_line(path)}/manifest.json: corrupt, or of an earlier version: its digest isn't right"
        )
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise TooNew(f"{one_line(path)}: written by format {version}, this program reads up to {FORMAT}; update it")
    if version != FORMAT:
        raise BadCheckpoint(f"{one_line(path)}: format {one_line(version)}, this program reads {FORMAT}")
    files = manifest.get("files")
    expected = {f"{name}.safetensors" for name in PARTS} | {"state.json"}
    if not isinstance(files, dict) or set(files) != expected:
        raise BadCheckpoint(f"{one_line(path)}/manifest.json: doesn't list {', '.join(sorted(expected))}")
    if extra := {entry.name for entry in list_entries(path)} - expected - {"manifest.json"}:
        raise BadCheckpoint(f"{one_line(path)}: holds {one_line(min(extra))}, which the manifest doesn't list")
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        list(pool.map(check_file, (path / str(name) for name in files), files.values()))
    try:
        model, optimizer = (load_file(path / f"{name}.safetensors") for name in PARTS)
    except Exception as error:  # safetensors has an exception class of its own
        raise BadCheckpoint(f"{one_line(path)}: {one_line(error)}") from None
    return LoadedCheckpoint(path, model, optimizer, read_state(path / "state.json"))


def read_state(path: Path) -> dict[str, Any]:
    """Read state.json. Raises BadCheckpoint naming the first key that is missing or of the wrong type."""
    state = read_json(path)
    try:
        StateFile.model_validate(state)
    except ValidationError as error:
        wrong = error.errors()[0]
        key = one_line(".".join(map(str, wrong["loc"])))
        raise BadCheckpoint(f"{one_line(path)}: {key}: {one_line(wrong['msg'])}") from None
    return state


def check_file(file: Path, entry: Any) -> None:
    """Raise BadCheckpoint unless a file has the size and digest in the manifest."""
    try:
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise BadCheckpoint(f"{one_line(file)}: has {size} bytes, the manifest says {one_line(entry['bytes'])}")
        if (digest := file_sha256(file)) != entry["sha256"]:
            theirs = one_line(entry["sha256"])
            raise BadCheckpoint(f"{one_line(file)}: corrupt, sha256 {digest[:12]}…, the manifest says {theirs[:12]}…")
    except (OSError, BadData, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{one_line(file)}: {one_line(error)}") from None
