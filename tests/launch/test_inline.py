"""A study in one process: finished points are skipped, failures don't stop others and are retried on request."""

import signal
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from cli.sweep_request import read_sweep
from launch.sweep import run_sweep
from nanogpt.config import TrainConfig
from nanogpt.distributed.signals import StopFlag
from nanogpt.errors import BadInput, Diverged
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.training.run import train
from tests.launch.jobs import Lab

SEEDS = "training.seed=1,2,3,4"
STEPS = "training.steps=3"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path)


class Trained:
    """A replacement for training that records its calls and fails as configured."""

    def __init__(self, **ends: int | BaseException) -> None:
        self.ends, self.called = ends, list[int]()

    def __call__(self, config: TrainConfig) -> int:
        seed = config.training.seed
        self.called.append(seed)
        end = self.ends.get(f"seed{seed}", 0)
        run = RunDirectory(locate_run(config))
        run.path.mkdir(parents=True, exist_ok=True)
        if isinstance(end, BaseException):
            run.write_status("diverged" if isinstance(end, Diverged) else "failed", step=3, steps=9)
            (run.path / "log.txt").write_text(f"2026-01-01 00:00:00  {end}\n")
            raise end
        run.write_status("finished", step=9, steps=9)
        return end


def sweep(lab: Lab, main: Callable[[TrainConfig], int], *words: str) -> int:
    seeds = [] if any("seed" in word for word in words) else [SEEDS]
    return run_sweep(read_sweep("train", TrainConfig, lab.only("name=s", *seeds, *words), multirun=True), main)


def test_a_failing_point_stops_nobody(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Foreseen or not; the first code that isn't 0 is that of the sweep, and the table says what went wrong."""
    main = Trained(seed1=RuntimeError("a bug"), seed3=Diverged("loss is nan"))
    assert sweep(lab, main) == 1
    assert main.called == [1, 2, 3, 4]
    shown = capsys.readouterr()
    assert "4 points, 4 to run" in shown.out and "2 finished" in shown.out
    assert "RuntimeError: a bug" in shown.err and "diverged: loss is nan" in shown.out


def test_the_same_command_leaves_alone_what_is_done_or_failed(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(lab, Trained(seed3=Diverged("loss is nan")))
    again = Trained()
    assert sweep(lab, again) == Diverged.exit_code and again.called == []
    shown = capsys.readouterr().out
    assert "0 to run (1 diverged, 3 finished)" in shown and "sweep.retry=failed does" in shown
    retried = Trained()
    assert sweep(lab, retried, "sweep.retry=failed") == 0 and retried.called == [3]


def test_a_point_that_failed_before_it_began_is_tried_again(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """As when its data was missing: it left no trace, and may work now."""

    def main(config: TrainConfig) -> int:
        if config.training.seed == 2:
            raise BadInput("no such file")
        return Trained()(config)

    assert sweep(lab, main) == 2
    assert "failed: no such file" in capsys.readouterr().out
    again = Trained()
    assert sweep(lab, again) == 0 and again.called == [2]


def test_ctrl_c_ends_the_sweep(lab: Lab) -> None:
    main = Trained(seed2=85)
    assert sweep(lab, main) == 85 and main.called == [1, 2]


@pytest.fixture
def interactive() -> Generator[None, None, None]:
    """SIGINT as in a terminal, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interactive")
def test_ctrl_c_in_the_last_words_of_a_point_ends_the_sweep_too(lab: Lab) -> None:
    """The point is finished and not repeated; the next does not start."""
    seen: list[int] = []

    def main(config: TrainConfig) -> int:
        seen.append(config.training.seed)
        with StopFlag():
            signal.raise_signal(signal.SIGINT)
        return Trained()(config)

    assert sweep(lab, main) == 85 and seen == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_folder_that_cannot_be_written(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a point, as a single run has it."""

    def main(config: TrainConfig) -> int:
        raise PermissionError(13, "Permission denied", "runs/s")

    assert sweep(lab, main) == 5
    assert capsys.readouterr().err.splitlines() == ["error: runs/s: Permission denied"] * 3


def test_the_code_is_that_of_the_first_point_that_failed(lab: Lab) -> None:
    sweep(lab, Trained(seed2=Diverged("loss is nan")))
    assert sweep(lab, Trained(), "training.seed=5,2,1") == Diverged.exit_code


def test_a_grown_study_trains_what_is_new(lab: Lab) -> None:
    """With the real training: finished points aren't opened again."""
    assert sweep(lab, train, "training.seed=1,2", STEPS) == 0
    seen = Trained()
    assert sweep(lab, seen, "training.seed=2,1,3", STEPS) == 0 and seen.called == [3]


def test_a_run_is_not_a_study(lab: Lab) -> None:
    (lab.folder / "runs" / "s").mkdir(parents=True)
    (lab.folder / "runs" / "s" / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="name=s: runs/s is a run, not a study"):
        sweep(lab, Trained())
