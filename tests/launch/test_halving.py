"""Successive halving against a grid that was trained to the end, with a simple computation of each rung."""

import math
import shutil
from pathlib import Path

import pytest

from cli.sweep_request import read_sweep
from launch.sweep import run_sweep
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput, Diverged
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.training.run import train
from tests.launch.jobs import Lab

LRS = ("1e-4", "1e-3", "1e-2", "3e-2", "0.1")
STEPS, ETA = 18, 3


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path)


def sweep(lab: Lab, name: str, *words: str, main: object = train) -> int:
    given: dict[str, object] = {"training.steps": STEPS, "eval.train": False, "tracking.sample_tokens": 0}
    given |= {"eval.every": 2}
    lrs = [] if any(word.startswith("optimizer.lr=") for word in words) else [f"optimizer.lr={','.join(LRS)}"]
    asked = lab.only(f"name={name}", *lrs, *words, **given)
    return run_sweep(read_sweep("train", TrainConfig, asked, multirun=True), main)  # type: ignore[arg-type]


def halving(lab: Lab, *words: str, main: object = train) -> int:
    return sweep(lab, "half", "hydra/sweeper=halving", *words, main=main)


def steps_of(lab: Lab, study: str) -> dict[str, int]:
    return {
        run.name.rpartition("-")[0]: RunDirectory(run).read_status()["step"]
        for run in lab.study(study).iterdir()
        if (run / "status.json").exists()
    }


def losses(lab: Lab, study: str) -> dict[str, dict[int, float]]:
    """Validation losses by step of every run."""
    return {
        run.name.rpartition("-")[0]: {
            int(row["step"]): row["val_loss"] for row in read_rows(run / "metrics.jsonl") if "val_loss" in row
        }
        for run in lab.study(study).iterdir()
        if run.name.startswith("lr")
    }


@pytest.mark.slow
def test_the_best_go_on_and_are_what_they_would_have_been(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Each rung keeps one in three of those that are best at its step in a grid trained to the end, and the winner's
    losses are those of its run there, to the bit.
    """
    assert sweep(lab, "grid") == 0
    grid = losses(lab, "grid")
    left, expected = list(grid), dict.fromkeys(grid, 0)
    for step in (2, 6, 18):
        expected |= dict.fromkeys(left, step)
        left = sorted(left, key=lambda name: grid[name][step])[: math.ceil(len(left) / ETA)]
    capsys.readouterr()
    assert halving(lab) == 0
    shown = capsys.readouterr().out
    assert "halving 5 to 11.1 %, 2 to 33.3 %, 1 to 100 % of their steps: 33 % of the work of all points" in shown
    assert steps_of(lab, "half") == expected
    winner = next(name for name, step in expected.items() if step == STEPS)
    assert losses(lab, "half")[winner] == grid[winner] and f"best    {winner}-" in shown


@pytest.mark.slow
def test_killed_in_the_middle_the_same_command_decides_the_same(lab: Lab) -> None:
    assert halving(lab) == 0
    expected, curves = steps_of(lab, "half"), losses(lab, "half")
    other = Lab(lab.folder / "other")
    calls: list[float] = []

    def main(config: TrainConfig) -> int:
        calls.append(config.optimizer.lr)
        if len(calls) in (3, 7):  # in the first rung, then in the second
            raise KeyboardInterrupt
        return train(config)

    words = ("runs_dir=other/runs", f"data.source={lab.corpus}")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            halving(lab, *words, main=main)
    assert halving(lab, *words, main=main) == 0
    assert steps_of(other, "half") == expected and losses(other, "half") == curves
    assert len(calls) == 5 + 2 + 1 + 2, "nothing is trained twice"


def test_a_point_that_diverges_is_out(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: TrainConfig) -> int:
        if config.optimizer.lr == 3e-2:
            run = RunDirectory(locate_run(config))
            run.path.mkdir(parents=True)
            run.write_status("diverged", step=1, steps=STEPS)
            raise Diverged("loss is nan")
        return train(config)

    assert halving(lab, "optimizer.lr=1e-4,1e-2,3e-2", "hydra.sweeper.rungs=2", main=main) == 0
    assert "failed" in capsys.readouterr().out
    assert steps_of(lab, "half") == {"lr0.0001": 6, "lr0.01": 18, "lr0.03": 1}


def test_a_rung_with_a_point_missing_decides_nothing(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """For example because its data was missing or its job was lost: it may still be the best."""

    def main(config: TrainConfig) -> int:
        if config.optimizer.lr == 3e-2:
            raise BadInput("no such file")
        return train(config)

    words = ("optimizer.lr=1e-4,1e-2,3e-2", "hydra.sweeper.rungs=2")
    assert halving(lab, *words, main=main) == 2
    assert "rung 1 is incomplete: lr0.03-" in capsys.readouterr().out
    assert steps_of(lab, "half") == {"lr0.0001": 6, "lr0.01": 6}
    assert halving(lab, *words) == 0


def test_a_setting_is_judged_by_all_its_seeds(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """The mean of the seeds decides, and all of them go on."""

    def main(config: TrainConfig) -> int:
        """Train with losses that the first seed alone would order the other way round."""
        val = {1e-4: (1.0, 9.0), 1e-3: (2.0, 2.0)}.get(config.optimizer.lr, (5.0, 5.0))[config.training.seed - 1]
        steps = config.last_step(STEPS)
        run = RunDirectory(locate_run(config))
        (run.path / "checkpoints" / f"step-{steps:08d}").mkdir(parents=True, exist_ok=True)
        run.metrics.append({"step": steps, "val_loss": val})
        run.write_status("finished" if steps == STEPS else "paused", step=steps, steps=STEPS)
        return 0

    assert halving(lab, "training.seed=1,2", main=main) == 0
    assert {name for name, step in steps_of(lab, "half").items() if step == STEPS} == {"lr0.001-seed1", "lr0.001-seed2"}
    assert "best    lr0.001, val 2.0000" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["stop_at_fraction=0.5", "new_attempt=true"])
def test_it_decides_how_far_runs_go_on(lab: Lab, word: str) -> None:
    with pytest.raises(BadInput, match=f"{word}: not with hydra/sweeper=halving"):
        halving(lab, word)
    assert not lab.study("half").exists()


def test_the_plan_writes_nothing(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert halving(lab, "dry_run=true", "hydra/launcher=submitit_local") == 0
    assert "33 % of the work" in capsys.readouterr().out and not lab.study("half").exists()


@pytest.mark.slow
def test_rungs_are_jobs_of_this_machine(lab: Lab) -> None:
    """Each rung is a submission; points that are left go on in theirs."""
    words = ("name=half", "hydra/sweeper=halving", "hydra.sweeper.rungs=2", "optimizer.lr=1e-4,1e-2")
    code, output = lab.do(*lab.sweep("submitit_local", *words, **{"training.steps": STEPS}))
    assert code == 0, output
    assert steps_of(lab, "half") == {"lr0.0001": 6, "lr0.01": 18}
    assert len(list(lab.study("half").glob(".launch/*/submission.json"))) == 2


def rung_rows(lab: Lab, name: str) -> Path:
    (run,) = lab.study("half").glob(f"{name}-*")
    return run / "metrics.jsonl"


@pytest.mark.slow
def test_decisions_stay_whatever_becomes_of_rows(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """A torn or a lost row, or a lost status.json, after it was decided changes nothing and holds nothing up."""
    words = ("optimizer.lr=1e-4,1e-3,1e-2", "hydra.sweeper.rungs=2", "hydra.sweeper.eta=2")
    assert halving(lab, *words) == 0
    first = [line for line in capsys.readouterr().out.splitlines() if "│ lr" in line and "promoted" in line]
    for name in ("lr0.01", "lr0.0001"):
        path = rung_rows(lab, name)
        rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join(row for row in rows if '"step": 9,' not in row or "val_loss" not in row))
    for _ in range(2):
        assert halving(lab, *words) == 0
        again = capsys.readouterr().out
        assert [line for line in again.splitlines() if "│ lr" in line and "promoted" in line] == first
    (rung_rows(lab, "lr0.0001").parent / "status.json").unlink()
    assert halving(lab, *words) == 0


def test_killed_between_the_evaluation_and_its_checkpoint(lab: Lab) -> None:
    """The rung isn't done before both are there, so its row is made again."""
    words = ("optimizer.lr=1e-3,1e-2", "hydra.sweeper.rungs=2", "eval.every=100", "checkpoint.every=4")

    def main(config: TrainConfig) -> int:
        code = train(config)
        run = RunDirectory(locate_run(config))
        if config.optimizer.lr == 1e-2 and config.stop_at_fraction:  # as the kill would have left it
            shutil.rmtree(run.checkpoints.path(6))
            run.write_status("running", step=5, steps=STEPS)
            raise KeyboardInterrupt
        return code

    with pytest.raises(KeyboardInterrupt):
        halving(lab, *words, main=main)
    for _ in range(2):
        assert halving(lab, *words) == 0
    assert 6 in losses(lab, "half")["lr0.01"]


def test_a_run_that_is_past_a_rung_cannot_be_compared(lab: Lab) -> None:
    """A grid was trained first, or eta was another: refused before anything is trained."""
    grid = ("optimizer.lr=1e-3,1e-2", "eval.every=100")
    assert sweep(lab, "half", *grid) == 0
    with pytest.raises(BadInput, match=r"past step 6, where this rung compares, and wasn't evaluated there"):
        halving(lab, "eval.every=100", "optimizer.lr=1e-3,1e-2,3e-2", "hydra.sweeper.rungs=2")
    assert not list(lab.study("half").glob("lr0.03-*"))
