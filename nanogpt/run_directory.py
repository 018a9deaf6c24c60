"""A run's folder: found again by the signature of its science config, owned by one process at a time.

runs/<name>-<signature>/{config.json, tokenizer.json, metrics.jsonl, timing.jsonl, status.json, provenance.json,
                         log.txt, checkpoints/, samples/, plots/}
"""

import json
import os
import re
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nanogpt import schema
from nanogpt.checkpoint import Checkpoints
from nanogpt.config import TrainConfig
from nanogpt.errors import BadCheckpoint, BadInput, Locked, escaped, hint
from nanogpt.files import locked, write_atomic
from nanogpt.schema import signature
from nanogpt.tracking.metrics import RowLog

SHORT = 8  # digits of the signature in a folder's name


class RunDirectory:
    """Paths and small files of one run."""

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path = path
        self.metrics = RowLog(path / "metrics.jsonl")
        self.timing = RowLog(path / "timing.jsonl")
        self.checkpoints = Checkpoints(path / "checkpoints", keep)

    @property
    def plot(self) -> Path:
        return self.path / "plots" / "loss.png"

    def config(self) -> TrainConfig:
        """The config the run was made with. Raises BadCheckpoint."""
        return schema.read(TrainConfig, self.path / "config.json")

    def write_status(self, state: str, **facts: Any) -> None:
        """status.json: what the run is doing, for programs that watch it."""
        about = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), "updated": time.time()} | facts
        write_atomic(self.path / "status.json", json.dumps(about, indent=1) + "\n")

    def status(self) -> dict[str, Any]:
        """What status.json says, or nothing."""
        try:
            return json.loads((self.path / "status.json").read_bytes())
        except (OSError, ValueError):
            return {}

    def add_start(self, facts: dict[str, Any]) -> None:
        """Append one start to provenance.json."""
        path = self.path / "provenance.json"
        try:
            starts: Any = json.loads(path.read_bytes())
        except (OSError, ValueError):
            starts = []
        write_atomic(path, json.dumps([*starts, facts], indent=1) + "\n")


def locate(config: TrainConfig) -> Path:
    """The folder of this config's run: its latest attempt, or a new one with `fresh`."""
    base = Path(config.runs_dir) / f"{config.run_name}-{signature(config)[:SHORT]}"
    attempts = [1] if base.exists() else []
    for path in base.parent.glob(f"{base.name}-*"):
        if number := re.fullmatch(re.escape(base.name) + r"-(\d+)", path.name):
            attempts.append(int(number[1]))
    latest = max(attempts, default=0) + (1 if config.fresh else 0)
    return base if latest <= 1 else base.with_name(f"{base.name}-{latest}")


@contextmanager
def opened(config: TrainConfig) -> Generator[RunDirectory, None, None]:
    """The run's folder, made if needed and locked while inside. Raises Locked, BadCheckpoint."""
    path = locate(config)
    path.mkdir(parents=True, exist_ok=True)
    with locked(path / ".lock", wait=False) as mine:
        run = RunDirectory(path, config.checkpoint.keep)
        if not mine:
            owner = run.status()
            who = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another process"
            raise Locked(f"{escaped(path)}: {who} is training here")
        if (path / "config.json").exists():
            if signature(run.config()) != signature(config):
                raise BadCheckpoint(f"{escaped(path)}: holds a run of another config; name=… or fresh=true")
        else:
            write_atomic(path / "config.json", schema.to_json(config))
        run.checkpoints.clean()
        yield run


def find(run: str | None, runs_dir: str) -> RunDirectory:
    """The run a person means: a folder, a name under `runs_dir`, or the latest with a checkpoint. Raises BadInput."""
    folder = Path(runs_dir)
    if run is None:
        runs = [RunDirectory(path.parent) for path in folder.glob("**/config.json")]
        if not runs:
            raise BadInput(f"run=null: no run under {escaped(runs_dir)}; train one first: python train.py")
        return max(runs, key=lambda one: (bool(one.checkpoints.steps()), newest_change(one.path)))
    for path in (Path(run), folder / run):
        if (path / "config.json").exists():
            return RunDirectory(path)
    names = [path.parent.name for path in folder.glob("*/config.json")]
    raise BadInput(f"run={escaped(run)}: not a run directory{hint(Path(run).name, names)}")


def newest_change(path: Path) -> float:
    """When a run was last written to."""
    return max((path / name).stat().st_mtime for name in ("config.json", "status.json") if (path / name).exists())
