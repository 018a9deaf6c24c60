"""Submit studies from an empty folder with the commands, and wait for their points."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.slurm_sandbox.cluster import SandboxCluster
from launch.status import RunStatus, read_points
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory
from tests import ranks
from tests.commands import command
from tests.conftest import ROOT
from tests.ranks import HANG
from tests.tiny_config import tiny_config, write_corpus

STEPS = 500


class Lab:
    """A folder to work in, with a small text; a run in it takes some seconds and saves every 20 steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.corpus = write_corpus(folder / "corpus.txt")

    def config(self, **changes: object) -> TrainConfig:
        """Return the config of the study's runs, which a test can also train directly."""
        usual = {"training.steps": STEPS, "eval.every": 250, "checkpoint.every": 20}
        return tiny_config(self.folder, self.corpus, **usual | changes)

    def words(self, **changes: object) -> list[str]:
        """Return that config as overrides."""
        values = dict(schema.iter_values(self.config(**changes)))
        usual = dict(schema.iter_values(TrainConfig(training={"steps": 1})))  # type: ignore[arg-type]
        presets = ("schedule.warmup_steps",)  # which model=tiny sets to something else than the schema's default
        rest = {key: value for key, value in values.items() if value != usual[key] or key in presets}
        del rest["runs_dir"]
        return [f"{key}={'null' if value is None else value}" for key, value in rest.items()]

    def only(self, *words: str, **changes: object) -> list[str]:
        """Return the overrides, with `words` in place of their keys."""
        own = {word.partition("=")[0] for word in words}
        return [*(word for word in self.words(**changes) if word.partition("=")[0] not in own), *words]

    def command(self, *words: str) -> list[str]:
        if words[0].endswith(".py"):
            return [sys.executable, str(ROOT / words[0]), *words[1:]]
        return [sys.executable, "-m", *words]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `python train.py words…` or `python -m launch words…`."""
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            self.command(*words),
            cwd=self.folder,
            env=environment,
            text=True,
            # Ctrl-C as in a terminal, also where the tests were started in the background, which ignores it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def do(self, *words: str) -> tuple[int, str]:
        """Run it in a forked process. Return exit code and output."""
        line = words if words[0].endswith(".py") else ("-m", *words)
        done = command(*line, folder=self.folder, PYTHONPATH=str(ROOT))
        return done.returncode, done.stdout + done.stderr

    def sweep(self, launcher: str, *words: str, **changes: object) -> list[str]:
        """Return the command of a sweep for `do` or `start`."""
        rest = self.only(*words, **changes)
        return ["train.py", "-m", f"hydra/launcher={launcher}", "hydra.launcher.poll_s=0.5", *rest]

    def study(self, name: str) -> Path:
        return self.folder / "runs" / name

    def points(self, name: str) -> dict[str, RunStatus]:
        """Return the study's points by the first part of their names."""
        return {point.path.name.rpartition("-")[0]: point for point in read_points(self.study(name))}

    def wait(
        self, name: str, done: Callable[[dict[str, RunStatus]], bool], seconds: float = HANG
    ) -> dict[str, RunStatus]:
        """Read the study's points until `done` accepts them."""
        limit = time.monotonic() + seconds
        while not done(points := self.points(name)):
            assert time.monotonic() < limit, describe(points)
            time.sleep(0.2)
        return points

    def wait_for(self, name: str, *states: str, seconds: float = HANG) -> dict[str, RunStatus]:
        """Wait until every point has one of these states."""
        return self.wait(name, lambda points: bool(points) and all(p.state in states for p in points.values()), seconds)

    def wait_for_step(self, name: str, point: str, step: int, seconds: float = HANG) -> RunStatus:
        """Wait until a point has a metrics row of this step or later."""

        def there(points: dict[str, RunStatus]) -> bool:
            rows = read_rows(points[point].path / "metrics.jsonl") if point in points else []
            return bool(rows) and rows[-1]["step"] >= step

        return self.wait(name, there, seconds)[point]


@contextmanager
def lab_on(cluster: SandboxCluster, folder: Path) -> Generator[Lab, None, None]:
    """Yield a lab whose commands, and this process, use a cluster."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        cluster.cancel_jobs()  # of other tests
        yield Lab(folder)


def describe(points: dict[str, RunStatus]) -> str:
    """Return states and log ends, for the message of a failed test."""
    lines: list[str] = []
    for name, point in points.items():
        lines.append(f"{name}: {point.state} {point.why} at step {point.step}, job {point.job}")
        if point.log and point.log.exists():
            lines += [f"    {line}" for line in point.log.read_text(errors="replace").splitlines()[-15:]]
    return "\n".join(lines)


def result(point: RunStatus) -> dict[str, str]:
    """Return digests of a run's weights, optimizer, metrics and samples."""
    config = RunDirectory(point.path).read_config()
    return ranks.result(config.model_copy(update={"runs_dir": str(point.path.parent)}))


def starts(point: RunStatus) -> int:
    return len(RunDirectory(point.path).read_starts())
