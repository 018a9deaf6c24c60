"""Searches with the real Optuna over a training that returns a known loss, and one over the real training."""

import json
import math
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from cli.sweep_request import read_sweep
from experiments.missing_points import find_never_started
from launch.sweep import run_sweep
from nanogpt.config import TrainConfig
from nanogpt.errors import STOPPED, BadCheckpoint, BadData, BadEnvironment, BadInput, Diverged, Locked
from nanogpt.files import hold_lock
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import locate_run
from nanogpt.schema import signature
from nanogpt.training.run import train
from tests.launch.jobs import Lab
from tests.launch.pretended import PretendedTraining

LR, DROPOUT = "optimizer.lr=tag(log,interval(1e-4,1e-1))", "model.dropout=interval(0,0.3)"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path)


def loss(config: TrainConfig) -> float:
    """Lowest, 2, at lr=1e-2 without dropout."""
    return 2 + (math.log10(config.optimizer.lr) + 2) ** 2 + config.model.dropout


class Trained(PretendedTraining):
    """A replacement for training with this loss."""

    def loss(self, config: TrainConfig, share: float) -> float:
        return loss(config)


def search(lab: Lab, main: Callable[[TrainConfig], int], *words: str, trials: int = 8) -> int:
    space = [] if any("optimizer.lr=" in word for word in words) else [LR, DROPOUT]
    given = ["name=s", "hydra/sweeper=optuna", f"hydra.sweeper.trials={trials}", *space, *words]
    return run_sweep(read_sweep("train", TrainConfig, lab.only(*given), multirun=True), main)


def record(lab: Lab) -> list[dict[str, str]]:
    """Return the values of all trials, in order."""
    return [json.loads(line)["values"] for line in (lab.study("s") / "trials.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_it_finds_the_best_region(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Better than as many trials at random, and the last words name the best run there is."""
    main = Trained()
    assert search(lab, main, trials=40) == 0
    losses = {str(locate_run(config)): loss(config) for config in main.called}
    best = min(losses, key=lambda run: losses[run])
    assert f"val {losses[best]:.4f}: {best}" in capsys.readouterr().out
    by_chance = Trained()
    assert search(lab, by_chance, "runs_dir=other/runs", "hydra.sweeper.sampler=random", trials=40) == 0
    late = [sum(sorted(loss(one) for one in some.called[10:])[:15]) for some in (main, by_chance)]
    assert len(losses) == 40 and losses[best] < 2.05 and late[0] < late[1]


@pytest.mark.parametrize("at_once", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_interrupted_anywhere_it_chooses_the_same(lab: Lab, at_once: int) -> None:
    """With Ctrl-C before each single training, some diverged and invalid trials among them."""

    def end(config: TrainConfig) -> BaseException | None:
        return Diverged("loss is nan") if config.optimizer.lr > 4e-3 else None

    words = (LR, DROPOUT, "model.n_head=2,3", f"hydra.sweeper.at_once={at_once}")
    whole = Trained(end)
    assert search(lab, whole, *words, trials=16) == 0
    expected = record(lab)
    tried = set[float]()

    def cut(config: TrainConfig) -> BaseException | None:
        if config.optimizer.lr in tried:
            return end(config)
        tried.add(config.optimizer.lr)
        return KeyboardInterrupt()

    other, pieces = Lab(lab.folder / "other"), Trained(cut)
    there = ("runs_dir=other/runs", f"data.source={lab.corpus}")
    for _ in range(len(whole.called)):
        with pytest.raises(KeyboardInterrupt):
            search(lab, pieces, *words, *there, trials=16)
    assert search(lab, pieces, *words, *there, trials=16) == 0
    assert record(other) == expected and len(expected) == 16
    assert len(pieces.called) == 2 * len(whole.called), "nothing is trained twice"
    assert any(end(config) for config in whole.called) and len(whole.called) < 16


def test_ctrl_c_during_a_training_ends_the_search(lab: Lab) -> None:
    called: list[float] = []

    def main(config: TrainConfig) -> int:
        called.append(config.optimizer.lr)
        return STOPPED if len(called) == 3 else Trained()(config)

    assert search(lab, main) == STOPPED and len(called) == 3
    assert search(lab, main) == 0 and len(called) == 9 and called[2] == called[3]


def test_more_trials_go_on_from_those_that_are_there(lab: Lab) -> None:
    longer, grown, other = Trained(), Trained(), ("runs_dir=other/runs",)
    assert search(lab, longer, trials=14) == 0
    assert search(lab, grown, *other, trials=6) == 0 and search(lab, grown, *other, trials=14) == 0
    assert [loss(one) for one in grown.called] == [loss(one) for one in longer.called]
    assert search(lab, grown, *other, trials=14) == 0 and len(grown.called) == 14


def test_a_report_misses_what_was_chosen_and_never_begun(lab: Lab) -> None:
    begun = Trained(lambda _: KeyboardInterrupt() if len(begun.called) == 3 else None)
    with pytest.raises(KeyboardInterrupt):
        search(lab, begun)
    words = ["train.py", "-m", *lab.only("name=s", "hydra/sweeper=optuna", LR, DROPOUT)]
    first = begun.called[0]
    missing = find_never_started(
        [(lab.study("s") / "x", first, [{"command": words}])], {signature(one) for one in begun.called[:2]}
    )
    assert [config.optimizer.lr for _, config in missing] == [begun.called[2].optimizer.lr]


def test_another_seed_is_another_search(lab: Lab) -> None:
    one, two = Trained(), Trained()
    search(lab, one)
    search(lab, two, "runs_dir=other/runs", "hydra.sweeper.seed=1")
    assert {loss(c) for c in one.called}.isdisjoint(loss(c) for c in two.called)


def test_what_ends_badly_does_not_end_the_search(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Diverged, crashed, invalid, left out: each with its reason; only what failed is tried again when asked to."""

    def end(config: TrainConfig) -> BaseException | None:
        if config.optimizer.lr > 3e-2:
            return Diverged("loss is nan")
        return RuntimeError("a bug") if config.optimizer.lr < 2e-4 else None

    words = (LR, "model.n_head=2,3", "sweep.exclude=['optimizer.lr>2e-3 optimizer.lr<1e-2']")
    main = Trained(end)
    assert search(lab, main, *words, trials=40) == 0
    shown = capsys.readouterr().out
    for expected in ("model.n_head=3: must divide", "diverged: loss is nan", "failed: a bug", "excluded by sweep.excl"):
        assert expected in shown
    assert not [one for one in main.called if 2e-3 < one.optimizer.lr < 1e-2 or one.model.n_head == 3]
    again = Trained()
    assert search(lab, again, *words, trials=40) == 0 and again.called == []
    assert search(lab, again, *words, "sweep.retry=failed", trials=40) == 0
    assert {one.optimizer.lr for one in again.called} == {one.optimizer.lr for one in main.called if end(one)}


@pytest.mark.slow
def test_it_keeps_away_from_what_diverges(lab: Lab) -> None:
    """Half of the interval diverges: of the trials after the first, random ones clearly less than half."""
    main = Trained(lambda config: Diverged("loss is nan") if config.optimizer.lr > 3.2e-3 else None)
    search(lab, main, LR, trials=60)
    assert sum(one.optimizer.lr > 3.2e-3 for one in main.called[20:]) < 16


def test_nothing_that_is_any_good(lab: Lab) -> None:
    assert search(lab, Trained(lambda _: Diverged("loss is nan")), trials=2) == Diverged.exit_code
    assert search(lab, Trained(), trials=2) == 1


def test_what_could_not_be_trained_is_tried_again(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """As when the data is missing: it says nothing about the values."""
    broken = Trained(lambda _: BadData("no such file"))
    assert search(lab, broken) == 3 and len(broken.called) == 1
    assert "trial 1 is incomplete" in capsys.readouterr().out
    main, undisturbed = Trained(), Trained()
    assert search(lab, main) == 0 and search(lab, undisturbed, "runs_dir=other/runs") == 0
    assert [loss(one) for one in main.called] == [loss(one) for one in undisturbed.called]


def test_every_seed_counts(lab: Lab) -> None:
    """The mean decides; a seed that is added later is trained, and the others are not again."""

    class Noisy(Trained):
        def loss(self, config: TrainConfig, share: float) -> float:
            return loss(config) + {1: 0.5, 2: -0.5, 3: 0}[config.training.seed]

    main, plain, words = Noisy(), Trained(), ("training.seed=1,2",)
    assert search(lab, main, *words, trials=14) == 0 and search(lab, plain, "runs_dir=other/runs", trials=14) == 0
    assert [one.training.seed for one in main.called] == [1, 2] * 14
    assert [one.optimizer.lr for one in main.called[::2]] == [one.optimizer.lr for one in plain.called]
    more = Noisy()
    assert search(lab, more, "training.seed=1,2,3", trials=14) == 0
    assert [one.training.seed for one in more.called] == [3] * 14


def test_values_that_come_again_are_not_trained_again(lab: Lab) -> None:
    main = Trained()
    assert search(lab, main, "optimizer.lr=1e-3,1e-2", "model.n_layer=1,2", trials=12) == 0
    assert len(record(lab)) == 12
    assert len(main.called) == len({(one.optimizer.lr, one.model.n_layer) for one in main.called}) <= 4


def test_another_search_under_the_same_name_is_begun_anew(lab: Lab) -> None:
    """Other settings are other runs; in a wider space those inside it are known."""
    search(lab, Trained(), trials=3)
    other = Trained()
    assert search(lab, other, "optimizer.weight_decay=0.2", trials=3) == 0 and len(other.called) == 3
    wider = Trained()
    assert search(lab, wider, LR, "model.dropout=interval(0,0.4)", trials=5) == 0 and len(wider.called) == 2


def test_a_line_cut_short_was_never_trained(lab: Lab) -> None:
    search(lab, Trained(), trials=12)
    path = lab.study("s") / "trials.jsonl"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:11]) + lines[11][:30])
    assert search(lab, Trained(), trials=12) == 0 and path.read_text() == whole
    path.write_text(lines[0] + "{}\n")
    with pytest.raises(BadCheckpoint, match=r"trials.jsonl: line 2 is not a trial"):
        search(lab, Trained())


def test_one_at_a_time(lab: Lab) -> None:
    lab.study("s").mkdir(parents=True)
    with hold_lock(lab.study("s") / ".trials.lock", wait=False), pytest.raises(Locked, match="runs this search"):
        search(lab, Trained())


def test_the_plan_writes_nothing(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    main = Trained()
    assert search(lab, main, "dry_run=true", "hydra/launcher=submitit_local") == 0
    assert search(lab, train, "dry_run=true") == 0
    shown = capsys.readouterr().out
    assert "8 trials, 1 at once, by tpe; 0 done" in shown and "optimizer.lr=tag(log,interval(1e-4,1e-1))" in shown
    assert "plan    " in shown and not (lab.folder / "runs").exists()
    search(lab, main, trials=1)
    assert f"trial   1: {' '.join(f'{key}={text}' for key, text in record(lab)[0].items())}" in shown


def test_what_it_does_not_do(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {
        (
            "hydra/launcher=submitit_local",
            "hydra.launcher.wait=false",
            "new_attempt=true",
        ): "new_attempt=true: hydra/sw",
        ("new_attempt=true",): "new_attempt=true: hydra/sweeper=optuna continues the existing search",
        ("stop_at_fraction=0.5",): "stop_at_fraction=0.5: hydra/sweeper=optuna trains every trial to its end",
        ("resume.run=runs/x",): "resume.run: continues one run",
    }
    for words, message in refused.items():
        with pytest.raises(BadInput, match=message):
            search(lab, Trained(), *words)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(BadInput, match="every rank would search"):
        search(lab, Trained())
    assert not (lab.folder / "runs").exists()


def test_without_optuna(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> ModuleSpec | None:
        return None if name == "optuna" else ModuleSpec(name, None)

    monkeypatch.setattr("launch.search.find_spec", found)
    with pytest.raises(BadEnvironment, match=r"is not installed: pip install 'optuna>=4,<5'"):
        search(lab, Trained())
    assert not (lab.folder / "runs").exists()


@pytest.mark.slow
def test_real_runs_as_jobs_and_here(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Two side by side as jobs, a third in this process; the last table has the losses of their metrics."""
    words, usual = (LR, "eval.train=false", "tracking.sample_tokens=0"), {"training.steps": 6, "eval.every": 6}
    jobs = ("name=s", "hydra/sweeper=optuna", "hydra.sweeper.trials=2", "hydra.sweeper.at_once=2", *words)
    code, output = lab.do(*lab.sweep("submitit_local", *jobs, **usual))
    assert code == 0 and "[I " not in output, output
    assert len(list(lab.study("s").glob(".launch/*/submission.json"))) == 1
    assert search(lab, train, *words, *(f"{key}={value}" for key, value in usual.items()), trials=3) == 0
    rows = [read_rows(path)[-1] for path in lab.study("s").glob("*/metrics.jsonl")]
    losses = sorted(row["val_loss"] for row in rows if row["step"] == 6)
    shown = capsys.readouterr().out
    assert "2 done" in shown and len(losses) == 3 and f"val {losses[0]:.4f}: runs/s/lr" in shown
    assert all(f"{one:.4f}" in shown[shown.rindex("3 trials: ") :] for one in losses)
