"""Asynchronous searches over real trainings here and as jobs, and over a training that writes known losses."""

import json
import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.config import TrainConfig
from nanogpt.errors import BadData, BadInput, Diverged, Locked
from nanogpt.files import hold_lock
from nanogpt.metrics_file import read_rows
from nanogpt.training.run import train
from tests.launch.jobs import Lab, describe
from tests.launch.pretended import PretendedTraining
from tests.launch.test_halving import losses, steps_of, sweep

STEPS = 18
LRS = "optimizer.lr=1e-4,3e-4,1e-3,3e-3,1e-2,3e-2"
Row = dict[str, object]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path)


def loss(config: TrainConfig, share: float) -> float:
    """Lowest, 2, at lr=1e-2 at the end; early on larger rates look worse than they are."""
    log_lr = math.log10(config.optimizer.lr)
    return 2 + (log_lr + 2) ** 2 + (1 - share) * (log_lr + 4) * 0.3


class Trained(PretendedTraining):
    """A replacement for training with this loss."""

    steps = STEPS

    def loss(self, config: TrainConfig, share: float) -> float:
        return loss(config, share)


def search(lab: Lab, *words: str, main: Callable[[TrainConfig], int] = train) -> int:
    """Run a search with the settings of `sweep` in tests/launch/test_halving.py."""
    swept = [] if any(word.startswith("optimizer.lr=") for word in words) else [LRS]
    return sweep(lab, "asha", "hydra/sweeper=asha", *swept, *words, main=main)


def rows(lab: Lab) -> list[Row]:
    return [json.loads(line) for line in (lab.study("asha") / "rungs.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_winner_is_what_it_would_have_been(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with halving's winner, and its losses are those of its run in a grid, to the bit."""
    assert sweep(lab, "grid", LRS) == 0
    assert sweep(lab, "half", "hydra/sweeper=halving", LRS) == 0
    best = next(name for name, step in steps_of(lab, "half").items() if step == STEPS)
    capsys.readouterr()
    assert search(lab) == 0
    shown = capsys.readouterr().out
    assert "1 at once; at least 6 to 11.1 %, 2 to 33.3 %, 1 to 100 % of their steps: 30 % of the work" in shown
    assert f"best    {best}-" in shown
    assert losses(lab, "asha")[best] == losses(lab, "grid")[best]
    trained = steps_of(lab, "asha")
    assert all(step >= 2 for step in trained.values()) and sum(trained.values()) < 6 * STEPS / 2


@pytest.mark.parametrize(
    "words",
    [
        ("training.seed=1,2",),
        ("hydra.sweeper.stop=median", "training.seed=1,2"),
        ("hydra.sweeper.stop=median", "hydra.sweeper.final_seeds=3"),
    ],
    ids=" ".join,
)
def test_killed_before_every_training_it_decides_the_same(lab: Lab, words: tuple[str, ...]) -> None:
    whole = Trained()
    assert search(lab, *words, main=whole) == 0
    expected = rows(lab)
    tried = set[tuple[float, int, float | None]]()

    def cut(config: TrainConfig) -> BaseException | None:
        part = config.optimizer.lr, config.training.seed, config.stop_at_fraction
        if part in tried:
            return None
        tried.add(part)
        return KeyboardInterrupt()

    other, pieces = Lab(lab.folder / "other"), Trained(cut)
    there = ("runs_dir=other/runs", f"data.source={lab.corpus}")
    for _ in range(len(whole.called)):
        with pytest.raises(KeyboardInterrupt):
            search(lab, *words, *there, main=pieces)
    assert search(lab, *words, *there, main=pieces) == 0
    assert rows(other) == expected and len(pieces.called) == 2 * len(whole.called), "nothing is trained twice"
    again = Trained()
    assert search(lab, *words, main=again) == 0 and again.called == [] and rows(lab) == expected


def test_a_line_cut_short_is_decided_again(lab: Lab) -> None:
    assert search(lab, main=Trained()) == 0
    path = lab.study("asha") / "rungs.jsonl"
    whole = path.read_text()
    for size in (len(whole) - 5, whole.index("\n", len(whole) // 2) + 7):
        path.write_text(whole[:size])
        again = Trained()
        assert search(lab, main=again) == 0 and path.read_text() == whole and again.called == []


def test_halving_continues_asynchronously_and_back(lab: Lab) -> None:
    """Either reads the other's results and trains only what it lacks."""
    first, second, third = Trained(), Trained(), Trained()
    assert sweep(lab, "asha", "hydra/sweeper=halving", LRS, main=first) == 0
    assert search(lab, main=second) == 0 and second.called == []
    assert search(lab, "hydra.sweeper.stop=median", main=third) == 0 and 0 < len(third.called) < len(first.called)
    assert sweep(lab, "asha", "hydra/sweeper=halving", LRS, main=second) == 0 and second.called == []


def test_what_fails_is_out_until_it_is_retried(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    bad = Trained(lambda config: Diverged("loss is nan") if config.optimizer.lr > 5e-3 else None)
    assert search(lab, main=bad) == 0
    shown = capsys.readouterr().out
    assert "6 of 6 points, 2 failed" in shown and "best    lr0.003-" in shown
    again = Trained()
    assert search(lab, "sweep.retry=failed", main=again) == 0
    assert "best    lr0.01-" in capsys.readouterr().out
    assert {config.optimizer.lr for config in again.called} >= {1e-2, 3e-2}


def test_what_could_not_start_decides_nothing(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """For example because its data is missing: it may be the best. The others are trained meanwhile."""
    main = Trained(lambda config: BadData("no such file") if config.optimizer.lr == 1e-2 else None)
    assert search(lab, main=main) == BadData.exit_code
    assert "the search is incomplete: 1 runs ended before their rung" in capsys.readouterr().out
    assert len({config.optimizer.lr for config in main.called}) == 6
    assert search(lab, main=Trained()) == 0 and "best    lr0.01-" in capsys.readouterr().out


def test_what_all_fail_of_is_not_tried_to_the_end(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    main = Trained(lambda _: RuntimeError("a bug"))
    assert search(lab, main=main) == 1 and len(main.called) == 3
    assert "the first runs all failed" in capsys.readouterr().out


def test_every_seed_counts(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting continues with all its seeds, by their mean."""
    main = Trained()
    assert search(lab, "training.seed=1,2,3", main=main) == 0
    parts = [(config.optimizer.lr, config.stop_at_fraction) for config in main.called]
    assert all(parts.count(part) == 3 for part in parts)
    assert "best    lr0.01, val 2.0000" in capsys.readouterr().out


class Lucky(Trained):
    """The seed of the grid is lucky with lr=3e-3."""

    def loss(self, config: TrainConfig, share: float) -> float:
        lucky = config.optimizer.lr == 3e-3 and "seed" not in (config.name or "")
        return loss(config, share) - 0.4 * lucky


def test_further_seeds_choose_among_the_finalists(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """The best of one seed is not the best of three; more seeds continue a search, and nothing is trained twice."""
    words, main = ("hydra.sweeper.rungs=2",), Lucky()
    assert search(lab, *words, main=main) == 0
    assert "best    lr0.003-" in capsys.readouterr().out
    assert search(lab, *words, "hydra.sweeper.final_seeds=3", main=main) == 0
    shown = capsys.readouterr().out
    assert "2 to 100 % of their steps, with 3 seeds: 122 % of the work of all points" in shown
    assert "best    lr0.01-" in shown and re.search(r"lr0\.01\S* +│ +3 +│ +100 % +│ +2\.0000", shown)
    assert re.search(r"lr0\.003\S* +│ +3 +│ +100 % +│ +2\.14", shown)
    ends = [(config.optimizer.lr, config.training.seed) for config in main.called if config.stop_at_fraction is None]
    assert len(ends) == len(set(ends)) == 6 and {lr for lr, _ in ends} == {3e-3, 1e-2}
    names = {path.name.rpartition("-")[0] for path in lab.study("asha").glob("lr0.01-*")}
    seed = min(seed for _, seed in ends)
    assert names == {"lr0.01", f"lr0.01-seed{seed + 1}", f"lr0.01-seed{seed + 2}"}


def test_a_sampler_chooses_points(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Few of many trials are trained to the end, and the sampler learns from paused ones; the same after each kill."""
    words = (
        "hydra.sweeper.sampler=tpe",
        "hydra.sweeper.trials=24",
        "optimizer.lr=tag(log,interval(1e-4,1e-1))",
        "model.n_head=2,3",
    )
    whole = Trained()
    assert search(lab, *words, main=whole) == 0
    assert "24 of 24 points" in capsys.readouterr().out
    trials, expected = (lab.study("asha") / "trials.jsonl").read_text(), rows(lab)
    ends = [config for config in whole.called if config.stop_at_fraction is None]
    assert 3 <= len(ends) < 10 and min(loss(config, 1) for config in ends) < 2.1
    first = [config for config in whole.called if config.stop_at_fraction == pytest.approx(1 / 9)]
    late = sum(abs(math.log10(config.optimizer.lr) + 2) < 0.75 for config in first[-8:])
    assert late >= 5, "near the best, not at random, where 4 of 8 would be expected"
    count = 0

    def cut(_: TrainConfig) -> BaseException | None:
        nonlocal count
        count += 1
        return KeyboardInterrupt() if count % 5 == 0 else None

    other, pieces = Lab(lab.folder / "other"), Trained(cut)
    there = ("runs_dir=other/runs", f"data.source={lab.corpus}")
    while True:
        try:
            assert search(lab, *words, *there, main=pieces) == 0
            break
        except KeyboardInterrupt:
            continue
    assert (other.study("asha") / "trials.jsonl").read_text() == trials and rows(other) == expected


def test_one_at_a_time(lab: Lab) -> None:
    lab.study("asha").mkdir(parents=True)
    with hold_lock(lab.study("asha") / ".trials.lock", wait=False), pytest.raises(Locked, match="runs this search"):
        search(lab, main=Trained())


REFUSED: dict[tuple[str, ...], str] = {
    ("new_attempt=true",): "new_attempt=true: not with hydra/sweeper=asha",
    ("stop_at_fraction=0.5",): "stop_at_fraction=0.5: not with hydra/sweeper=asha",
    ("hydra.sweeper.eta=1",): "hydra.sweeper.eta=1: ",
    ("hydra.sweeper.slots=0",): "hydra.sweeper.slots=0: ",
    ("hydra.sweeper.final_seeds=0",): "hydra.sweeper.final_seeds=0: ",
    ("hydra.sweeper.final_seeds=2", "training.seed=1,2"): "hydra.sweeper.final_seeds=2: not with several values of",
    ("hydra.sweeper.slots=2",): "hydra.sweeper.slots=2: this process trains one run at a time",
    ("hydra.sweeper.slot=2",): "did you mean 'hydra.sweeper.slots'",
    ("hydra.sweeper.stop=medain",): "did you mean 'median'",
    ("optimizer.lr=interval(1e-4,1e-2)",): "hydra/sweeper=asha hydra.sweeper.sampler=tpe",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_it_refuses(lab: Lab, words: tuple[str, ...]) -> None:
    with pytest.raises(BadInput) as caught:
        search(lab, *words, main=Trained())
    assert REFUSED[words] in str(caught.value) and not (lab.folder / "runs").exists()


def test_the_plan_writes_nothing(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(lab, "dry_run=true", "hydra/launcher=submitit_local", "hydra.sweeper.slots=2") == 0
    assert "asha    2 at once; at least 6 to 11.1 %" in capsys.readouterr().out and not (lab.folder / "runs").exists()


def jobs(lab: Lab, launcher: str, *words: str) -> list[str]:
    """Return the command of a search over real trainings with two slots."""
    given = ("name=asha", "hydra/sweeper=asha", "hydra.sweeper.slots=2", LRS, *words)
    return lab.sweep(launcher, *given, **{"training.steps": 90, "checkpoint.every": 10, "eval.every": 10})


def check_decisions(lab: Lab) -> None:
    """Assert that every start follows by the rules from the lines before it, and the best is trained to the end."""
    ends = [str(row["at"]) for row in rows(lab) if str(row.get("at")).endswith(" 1.0")]
    states = lab.points("asha")
    finished = [name for name, point in states.items() if point.state == "finished"]
    assert finished and len(ends) >= 1, describe(states)
    starts = [row["start"] for row in rows(lab) if "start" in row]
    assert len(starts) == len(set(starts)), "nothing is chosen twice"


@pytest.mark.slow
def test_two_jobs_at_once_and_killed_in_between(lab: Lab) -> None:
    """The driver is killed, then a job: the same command continues, and losses are those of undisturbed runs."""
    process = lab.start(*jobs(lab, "submitit_local"))
    point = lab.wait_for_step("asha", "lr0.0001", 10)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    os.kill(int(point.job), signal.SIGKILL)  # the job's controller; its rank dies with it
    code, output = lab.do(*jobs(lab, "submitit_local"))
    assert code == 0, output
    check_decisions(lab)
    name = output[output.rindex("best    ") :].split()[1].rstrip(",").rpartition("-")[0]
    words = ("name=alone", f"optimizer.lr={name.removeprefix('lr')}")
    given = {"training.steps": 90, "checkpoint.every": 10, "eval.every": 10}
    code, output = lab.do("train.py", "-m", *lab.only(*words, **given))
    assert code == 0, output
    (alone,) = (path for path in lab.study("alone").iterdir() if (path / "metrics.jsonl").exists())
    (run,) = lab.study("asha").glob(f"{name}-*")
    expected = [row for row in read_rows(alone / "metrics.jsonl") if "val_loss" in row]
    found = {row["step"]: row["val_loss"] for row in read_rows(run / "metrics.jsonl") if "val_loss" in row}
    assert all(found[row["step"]] == row["val_loss"] for row in expected)
