"""A sweep in one process: edits of the code don't reach points that come later, and equal failures end it early."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.sweep_request import read_sweep
from launch import loaded_code
from launch.loaded_code import keep_code
from launch.snapshot import is_whole
from launch.study import plan_study
from launch.sweep import run_sweep
from nanogpt import child_process
from nanogpt.config import TrainConfig
from nanogpt.errors import BadData, BadEnvironment
from nanogpt.run_directory import RunDirectory, locate_run
from tests.launch.jobs import Lab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path)


def sweep(lab: Lab, main: Callable[[TrainConfig], int], count: int) -> int:
    seeds = "training.seed=" + ",".join(map(str, range(1, count + 1)))
    return run_sweep(read_sweep("train", TrainConfig, lab.only("name=s", seeds), multirun=True), main)


def test_equal_failures_before_the_first_step_end_a_sweep(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    called: list[int] = []

    def main(config: TrainConfig) -> int:
        called.append(config.training.seed)
        raise ImportError("cannot import name 'x'")

    assert sweep(lab, main, 9) == 1
    shown = capsys.readouterr()
    assert called == [1, 2, 3]
    assert "3 points in a row ended before their first step for the same reason; 6 were not started" in shown.out
    assert "ImportError: cannot import name 'x'; the same for 2 more" in shown.out


@pytest.mark.parametrize("kind", ["other reasons", "after a step", "with a success between"])
def test_other_failures_do_not(kind: str, lab: Lab) -> None:
    called: list[int] = []

    def main(config: TrainConfig) -> int:
        called.append(config.training.seed)
        run = RunDirectory(locate_run(config))
        run.path.mkdir(parents=True, exist_ok=True)
        if kind == "after a step":
            run.write_status("failed", step=1, steps=9)
        if kind == "with a success between" and config.training.seed % 3 == 0:
            run.write_status("finished", step=9, steps=9)
            return 0
        raise BadEnvironment(f"no disk {config.training.seed if kind == 'other reasons' else ''}")

    assert sweep(lab, main, 6) == 5 and len(called) == 6


def test_a_reason_that_names_the_run_is_the_same_reason(lab: Lab) -> None:
    called: list[int] = []

    def main(config: TrainConfig) -> int:
        called.append(config.training.seed)
        raise BadData(f"{locate_run(config)}: not there")

    assert sweep(lab, main, 5) == 3 and len(called) == 3


def test_everything_is_loaded_before_the_first_point(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case B9: a module that a point imports at its end is edited while the sweep runs."""
    late = "nanogpt.training.summary"
    monkeypatch.delitem(sys.modules, late, raising=False)
    there: list[bool] = []

    def main(config: TrainConfig) -> int:
        there.append(late in sys.modules)
        return 0

    sweep(lab, main, 2)
    assert there == [True, True]


def test_ranks_get_a_copy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_code, "load_library", set)
    words = lab.only("name=s", "training.seed=1,2", "hardware.devices=2")
    planned_runs = plan_study(read_sweep("train", TrainConfig, words, multirun=True)).runs
    tree = child_process.CODE_ROOT
    with keep_code(planned_runs):
        assert (
            tree != child_process.CODE_ROOT
            and is_whole(child_process.CODE_ROOT)
            and (child_process.CODE_ROOT / "nanogpt/distributed/spawn.py").is_file()
        )
        copy = child_process.CODE_ROOT
    assert tree == child_process.CODE_ROOT and not copy.exists()
    with keep_code(planned_runs[:1]):
        assert tree == child_process.CODE_ROOT


def test_optuna_is_imported_for_searches_alone() -> None:
    code = "import sys, launch.sweep, launch.search; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
