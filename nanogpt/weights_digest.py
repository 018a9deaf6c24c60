"""Identify the weights that a run starts from by what they hold, not by how their path is written."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from nanogpt.config import TrainConfig
from nanogpt.data.content import DigestCache
from nanogpt.entry_names import step_name
from nanogpt.errors import BadCheckpoint, LabError, one_line
from nanogpt.files import mtime, read_json

TENSORS = "model.safetensors"


def weights_digest(config: TrainConfig, remember: bool = True) -> str | None:
    """Return the digest of the tensors that `init_from` means: of a file, of a Hugging Face folder's safetensors, or
    of a run's best checkpoint; None for a model of the hub, and where nothing is there or it can't be read.
    """
    path = Path(config.init_from)
    if config.init_from == "scratch" or not os.path.exists(path):
        return None
    memory = DigestCache(Path(config.data.dir))
    try:
        if os.path.isdir(path / "checkpoints"):
            digests = [run_digest(path)]
        else:
            files = [path] if os.path.isfile(path) else sorted(path.glob("*.safetensors"))
            digests = [memory.read(file).sha256 for file in files]
    except (LabError, OSError, KeyError, TypeError):
        return None
    if remember:
        memory.save()
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest() if digests else None


def run_digest(path: Path) -> str:
    """Return the digest of the weights in a run's best checkpoint, as its manifest says. Raises BadCheckpoint."""
    from nanogpt.checkpoint import Checkpoints  # torch: only where weights of a run are asked for

    checkpoints = Checkpoints(path / "checkpoints")
    step = checkpoints.best_step() or max(checkpoints.steps(), default=None)
    if step is None:
        raise BadCheckpoint(f"{one_line(path)}: no checkpoint yet")
    return str(read_json(checkpoints.folder / step_name(step) / "manifest.json")["files"][TENSORS]["sha256"])


def with_weights_digest(config: TrainConfig, remember: bool = True) -> TrainConfig:
    """Return the config with `init_from_sha256` filled in.

    Where the weights are gone, the newest run that began with this `init_from` says what they were.
    """
    if config.init_from == "scratch" or config.init_from_sha256 is not None:
        return config
    digest = weights_digest(config, remember) or recorded_digest(config)
    return config if digest is None else config.model_copy(update={"init_from_sha256": digest})


def recorded_digest(config: TrainConfig) -> str | None:
    """Return the digest that the newest run with this `init_from`, alone or in a study, has in its config."""
    folder = Path(config.runs_dir)
    for path in sorted([*folder.glob("*/config.json"), *folder.glob("*/*/config.json")], key=mtime, reverse=True):
        with suppress(LabError):
            stored = read_json(path)
            digest = stored.get("init_from_sha256")
            if stored.get("init_from") == config.init_from and isinstance(digest, str):
                return digest
    return None


def check_weights(config: TrainConfig) -> None:
    """Raise BadCheckpoint if init_from holds other weights than `init_from_sha256` says."""
    if config.init_from_sha256 is not None and weights_digest(config) not in (None, config.init_from_sha256):
        raise BadCheckpoint(
            f"init_from={one_line(config.init_from)}: holds other weights now than init_from_sha256="
            f"{config.init_from_sha256[:12]}…, with which this run began; the same command without it is another run"
        )
