"""Checkpoints that are whole or absent: written aside, hashed, forced to disk, renamed; verified before they are read.

    checkpoints/step-00002000/{model.safetensors, optimizer.safetensors, state.json, manifest.json}

The manifest holds the size and sha256 of the other files and is written last. No file is a pickle.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from nanogpt.data.shards import sha256
from nanogpt.errors import BadCheckpoint, BadData, BadEnvironment, escaped
from nanogpt.files import sync

FORMAT = 1
PARTS = ("model", "optimizer")
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint in memory."""

    path: Path
    model: Tensors
    optimizer: Tensors
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. Only the process that holds the run's lock may save or clean."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        names = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted(int(name) for name in names if name.isdigit())

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
        """Write one checkpoint, then remove those that needn't be kept. Raises BadEnvironment when the disk is full.

        Until the final rename the older checkpoints are all there is, and none of them is touched before it.
        """
        final, partial = self.path(step), self.folder / f".tmp-step-{step:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            for name in PARTS:
                save_file(tensors[name], partial / f"{name}.safetensors")
            write(partial / "state.json", state)
            names = [f"{name}.safetensors" for name in PARTS] + ["state.json"]
            files = {
                name: {"bytes": (partial / name).stat().st_size, "sha256": sha256(partial / name)} for name in names
            }
            for name in names:
                sync(partial / name)
            write(partial / "manifest.json", {"format": FORMAT, "step": step, "files": files})
            sync(partial / "manifest.json")
            sync(partial)
        except Exception as error:  # safetensors raises its own for a full disk
            shutil.rmtree(partial, ignore_errors=True)
            why = escaped(str(error), 200)
            raise BadEnvironment(f"{escaped(final)}: can't be written ({why}); the older ones are intact") from None
        if final.exists():  # the same step, evaluated since
            os.replace(final, self.folder / f".del-step-{step:08d}")
        os.replace(partial, final)
        sync(self.folder)
        shutil.rmtree(self.folder / f".del-step-{step:08d}", ignore_errors=True)
        self.prune()
        return final

    def prune(self) -> None:
        """Keep the newest `keep` and the one with the best validation loss."""
        steps = self.steps()
        kept = {*steps[-self.keep :], self.best_step()}
        for step in steps:
            if step not in kept:
                doomed = self.folder / f".del-step-{step:08d}"
                os.replace(self.path(step), doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def best_step(self) -> int | None:
        """The step whose checkpoint has the lowest validation loss, or None."""
        losses: dict[int, float] = {}
        for step in self.steps():
            try:
                loss = json.loads((self.path(step) / "state.json").read_bytes()).get("val_loss")
            except (OSError, ValueError, AttributeError):
                continue
            if isinstance(loss, float):
                losses[step] = loss
        return min(losses, key=lambda step: (losses[step], step)) if losses else None

    def clean(self) -> None:
        """Remove what a killed process left half done."""
        for path in [*self.folder.glob(".tmp-*"), *self.folder.glob(".del-*")]:
            shutil.rmtree(path, ignore_errors=True)

    def newest(self) -> tuple[Loaded | None, list[BadCheckpoint]]:
        """The newest checkpoint that verifies, and why each newer one doesn't. Only reads.

        Raises BadCheckpoint when there are checkpoints and none is good: a run never starts over by itself.
        """
        bad: list[BadCheckpoint] = []
        for step in reversed(self.steps()):
            try:
                return verify(self.path(step)), bad
            except BadCheckpoint as error:
                bad.append(error)
        if bad:
            reasons = "; ".join(map(str, bad))
            raise BadCheckpoint(f"no usable checkpoint: {reasons}; fresh=true starts another attempt")
        return None, []

    def set_aside(self, after: int) -> None:
        """Move the checkpoints above a step, found bad, out of the way; nothing is deleted."""
        for step in self.steps():
            if step > after:
                aside = self.folder / f".bad-step-{step:08d}"
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(self.path(step), aside)


def verify(path: Path) -> Loaded:
    """Read a checkpoint and check all of it first. Raises BadCheckpoint naming the file that is wrong."""
    manifest = read_json(path / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise BadCheckpoint(f"{escaped(path)}: format {escaped(manifest.get('format'))}, this program reads {FORMAT}")
    files = manifest.get("files")
    expected = {f"{name}.safetensors" for name in PARTS} | {"state.json"}
    if not isinstance(files, dict) or set(files) != expected:
        raise BadCheckpoint(f"{escaped(path)}/manifest.json: doesn't list {', '.join(sorted(expected))}")
    for name, entry in files.items():
        file = path / name
        try:
            size = file.stat().st_size
            if size != entry["bytes"]:
                raise BadCheckpoint(f"{escaped(file)}: has {size} bytes, the manifest says {escaped(entry['bytes'])}")
            if sha256(file) != entry["sha256"]:
                raise BadCheckpoint(f"{escaped(file)}: corrupt, its sha256 is not the manifest's")
        except (OSError, BadData, KeyError, TypeError) as error:
            raise BadCheckpoint(f"{escaped(file)}: {escaped(error)}") from None
    try:
        model, optimizer = (load_file(path / f"{name}.safetensors") for name in PARTS)
    except Exception as error:  # safetensors raises its own
        raise BadCheckpoint(f"{escaped(path)}: {escaped(error)}") from None
    return Loaded(path, model, optimizer, read_json(path / "state.json"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises BadCheckpoint."""
    try:
        value: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadCheckpoint(f"{escaped(path)}: missing") from None
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{escaped(path)}: {escaped(error)}") from None
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{escaped(path)}: not a JSON object")
    return {str(name): entry for name, entry in value.items()}


def write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
