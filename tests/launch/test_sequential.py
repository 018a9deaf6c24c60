"""Seeds that are added until the verdict stands: whole studies, killed and continued, with losses from a table."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli.sweep_request import read_sweep
from experiments.find import find_runs
from experiments.report import read_study
from launch.looks import FILE, read_looks
from launch.sweep import run_sweep
from nanogpt.config import ReportConfig, TrainConfig
from nanogpt.errors import BadInput, Diverged
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.schema import to_json
from nanogpt.training.run import train
from nanogpt.verdicts import LOOK_LEVEL
from tests.cli_helpers import error_message
from tests.launch.jobs import Lab

STEPS = 4
MEANS = {1e-3: 3.0, 3e-3: 2.5, 1e-2: 2.0, 3e-2: 2.05}  # of losses with a standard deviation of 0.02


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path)


def draw_loss(config: TrainConfig) -> float:
    rng = np.random.default_rng([round(1e6 * config.optimizer.lr), config.training.seed])
    return MEANS[config.optimizer.lr] + 0.02 * float(rng.normal())


class Trainer:
    """Writes runs with given losses, and notes them."""

    def __init__(self, loss: Callable[[TrainConfig], float] = draw_loss, kill_at: int | None = None) -> None:
        self.loss, self.kill_at = loss, kill_at
        self.trained: list[tuple[float, int]] = []

    def __call__(self, config: TrainConfig) -> int:
        if len(self.trained) == self.kill_at:
            raise KeyboardInterrupt
        self.trained.append((config.optimizer.lr, config.training.seed))
        run = RunDirectory(locate_run(config))
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / "config.json").write_text(to_json(config))
        loss = self.loss(config)
        if not math.isfinite(loss):
            run.write_status("diverged", step=1, steps=STEPS)
            raise Diverged("loss is nan")
        run.metrics.append({"step": STEPS, "tokens": 100, "val_loss": loss, "val_bpb": loss / 0.6931})
        run.write_status("finished", step=STEPS, steps=STEPS)
        return 0

    def seeds_of(self, lr: float) -> list[int]:
        return [seed for own, seed in self.trained if own == lr]


def until(lab: Lab, *words: str, main: Callable[[TrainConfig], int], seeds: int = 12, name: str = "study") -> int:
    lrs = [] if any(word.startswith("optimizer.lr=") for word in words) else ["optimizer.lr=1e-3,3e-3,1e-2,3e-2"]
    seed = [] if any(word.startswith("training.seed=") for word in words) else [f"training.seed=range(1,{seeds + 1})"]
    what = [] if any(word.startswith("sweep.until=") for word in words) else ["sweep.until=decided"]
    given = lab.only(f"name={name}", *lrs, *seed, *what, *words, **{"training.steps": STEPS})
    return run_sweep(read_sweep("train", TrainConfig, given, multirun=True), main)


def test_seeds_are_added_where_they_decide(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer()
    assert until(lab, main=trainer) == 0
    shown = capsys.readouterr().out
    assert trainer.seeds_of(1e-3) == trainer.seeds_of(3e-3) == [1, 2], "far from the best: two seeds are enough"
    assert trainer.seeds_of(1e-2) == trainer.seeds_of(3e-2) == list(range(1, len(trainer.seeds_of(1e-2)) + 1))
    assert 3 <= len(trainer.seeds_of(1e-2)) <= 12 and len(trainer.trained) == len(set(trainer.trained))
    assert "until   decided: 4 settings, 8 to 48 runs; looks at 2, 3, 4, 6, 8, 12 seeds" in shown
    assert f"decided with {len(trainer.seeds_of(1e-2))} seeds: {len(trainer.trained)} of 48 runs" in shown
    assert "best    lr0.01, val " in shown and "not told apart" not in shown.partition("decided with")[2]
    again = Trainer()
    assert until(lab, main=again) == 0 and again.trained == []
    assert shown.partition("decided with")[2] in capsys.readouterr().out


@pytest.mark.parametrize("kill_at", [7, 9])
def test_a_kill_changes_no_decision(lab: Lab, kill_at: int) -> None:
    whole = Trainer()
    assert until(lab, main=whole, name="whole") == 0
    first, second = Trainer(kill_at=kill_at), Trainer()
    with pytest.raises(KeyboardInterrupt):
        until(lab, main=first)
    assert until(lab, main=second) == 0
    assert first.trained + second.trained == whole.trained
    assert (lab.study("study") / FILE).read_text() == (lab.study("whole") / FILE).read_text()


def test_losses_that_decided_stay(lab: Lab) -> None:
    """Deleted or rewritten runs change nothing; a torn looks.json is made again from the runs."""
    assert until(lab, main=Trainer()) == 0
    path = lab.study("study") / FILE
    before = path.read_text()
    runs = list(lab.study("study").glob("lr0.001-*"))
    for run in runs:
        (run / "metrics.jsonl").unlink()
    again = Trainer()
    assert until(lab, main=again) == 0 and not again.trained and path.read_text() == before
    for run in runs:
        (run / "status.json").unlink()
    path.write_text(before[:100])
    again = Trainer()
    assert until(lab, main=again) == 0 and sorted(again.trained) == [(1e-3, 1), (1e-3, 2)]
    assert json.loads(path.read_text()) == json.loads(before)


def test_a_higher_maximum_continues(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert until(lab, main=Trainer(), seeds=2) == 0
    assert "not decided with 2 seeds, the maximum; more seeds in training.seed continue: 8 of 8 runs" in (
        shown := capsys.readouterr().out
    )
    assert "not told apart: lr0.03" in shown
    more, whole = Trainer(), Trainer()
    assert until(lab, main=more) == 0 and until(lab, main=whole, name="whole") == 0
    assert more.trained == whole.trained[8:]


@pytest.mark.slow
def test_precision(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal settings are never decided, but their difference becomes known to any precision."""
    trainer = Trainer(lambda config: draw_loss(config) - 0.05 * (config.optimizer.lr == 3e-2))
    assert until(lab, "sweep.until=precision=0.03", main=trainer, seeds=32) == 0
    shown = capsys.readouterr().out
    (end,) = [line for line in shown.splitlines() if line.startswith("precise with")]
    halves = [
        float(line.split("±")[1].split()[0]) for line in shown.splitlines() if "not told apart" in line and "±" in line
    ]
    assert halves[-1] <= 0.03 and all(half > 0.03 for half in halves[:-1]) and len(halves) > 1
    assert int(end.split()[2]) < 32
    assert until(lab, "sweep.until=decided", "sweep.tolerance=0.06", main=Trainer(), seeds=32) == 0
    assert "equivalent: lr0.0" in capsys.readouterr().out


def test_seeds_that_are_unlikely_to_tell_settings_apart_are_saved(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Two settings are equal. A higher maximum of seeds may tell them apart, so it goes on."""

    def loss(config: TrainConfig) -> float:
        return draw_loss(config) - 0.07 * (config.optimizer.lr == 3e-2)

    first, again, more = Trainer(loss), Trainer(loss), Trainer(loss)
    assert until(lab, main=first) == 0
    shown = capsys.readouterr().out
    assert "the others are not told apart, and with the maximum of 12 the chance of that is below 10%" in shown
    assert "not told apart: lr0.0" in shown and len(first.trained) < 48 / 3
    assert until(lab, main=again) == 0 and not again.trained
    assert until(lab, main=more, seeds=24) == 0 and more.trained
    assert {lr for lr, _ in more.trained} == {1e-2, 3e-2}


def test_a_setting_that_diverges_is_named_and_gets_no_more_seeds(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    def loss(config: TrainConfig) -> float:
        return math.nan if (config.optimizer.lr, config.training.seed) == (3e-2, 2) else draw_loss(config)

    trainer = Trainer(loss)
    assert until(lab, main=trainer) == 0
    shown = capsys.readouterr().out
    assert trainer.seeds_of(3e-2) == [1, 2] and "diverged: lr0.03" in shown and "best    lr0.01" in shown
    again = Trainer()
    assert until(lab, "sweep.retry=failed", main=again) == 0
    assert again.trained[0] == (3e-2, 2) and len(again.seeds_of(3e-2)) > 1, "it then takes part"


def test_a_setting_that_fails_is_not_judged(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: TrainConfig) -> int:
        if (config.optimizer.lr, config.training.seed) == (1e-2, 1):
            run = RunDirectory(locate_run(config))
            run.path.mkdir(parents=True, exist_ok=True)
            run.write_status("failed", step=1, steps=STEPS)
            raise OSError("disk full")
        return Trainer()(config)

    assert until(lab, main=main) != 0
    shown = capsys.readouterr().out
    assert "failed: lr0.01" in shown and "best    lr0.03" in shown
    assert until(lab, "sweep.retry=failed", main=Trainer()) == 0
    assert "best    lr0.01" in capsys.readouterr().out


def test_a_look_with_a_run_missing_decides_nothing(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: TrainConfig) -> int:
        if (config.optimizer.lr, config.training.seed) == (1e-3, 2):
            raise BadInput("no such file")
        return Trainer()(config)

    assert until(lab, main=main) == 2
    assert "the look at 2 seeds is incomplete: lr0.001-seed2-" in capsys.readouterr().out
    assert not (lab.study("study") / FILE).exists()


def test_real_trainings(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert until(lab, "optimizer.lr=1e-5,3e-2", "training.steps=20", "eval.train=false", main=train, seeds=3) == 0
    shown = capsys.readouterr().out
    assert "best    lr0.03" in shown and "decided with" in shown
    log = read_looks(lab.study("study"))
    assert log is not None and log.end == "decided" and {name[:7] for name in log.dropped} == {"lr1e-05"}


def test_the_report_says_so(lab: Lab) -> None:
    """It names no seed as missing that no look needed, keeps what a look decided, and has the wider intervals."""
    assert until(lab, main=Trainer()) == 0
    data = read_study(find_runs(ReportConfig(targets=(str(lab.study("study")),))), "val_loss")
    (note,) = data.notes
    assert "sweep.until=decided; decided with" in note
    (ranking,) = data.rankings
    assert ranking.level == LOOK_LEVEL and ranking.verdicts is not None
    assert [verdict.kind for verdict in ranking.verdicts.verdicts] == ["reference", "worse", "worse", "worse"]
    assert {result.status.state for result in data.results} == {"finished"}
    path = lab.study("study") / FILE
    for run in lab.study("study").glob("lr0.003-*"):  # its mean is the lowest now; the look's verdict stays
        assert run.name in json.loads(path.read_text())["dropped"]
        rows = run / "metrics.jsonl"
        rows.write_text(rows.read_text().replace('"val_loss": 2.', '"val_loss": 1.'))
    ranking = read_study(find_runs(ReportConfig(targets=(str(lab.study("study")),))), "val_loss").rankings[0]
    assert ranking.verdicts and ranking.verdicts.verdicts[0].kind == "reference"
    assert ranking.best is not None and ranking.best.values["optimizer.lr"] == 1e-2


def test_the_plan_writes_nothing(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert until(lab, "dry_run=true", "hydra/launcher=submitit_local", main=Trainer()) == 0
    assert "4 settings, 8 to 48 runs" in capsys.readouterr().out and not lab.study("study").exists()


@pytest.mark.slow
def test_looks_are_jobs_of_this_machine(lab: Lab) -> None:
    words = ("name=jobs", "sweep.until=decided", "optimizer.lr=1e-5,3e-2", "training.seed=1,2,3")
    code, output = lab.do(*lab.sweep("submitit_local", *words, **{"training.steps": 20}))
    assert code == 0 and "best    lr0.03" in output, output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra/sweeper=halving"], "sweep.until=decided: not with hydra/sweeper=halving"),
        (["hydra/sweeper=optuna"], "sweep.until=decided: not with hydra/sweeper=optuna"),
        (["optimizer.lr=1e-3"], "sweep.until=decided: compares settings; sweep another key beside training.seed"),
        (
            ["training.seed=1"],
            "sweep.until=decided: lr0.001-9931f17f has one seed; give the most that it may use",
        ),
        (["new_attempt=true"], "new_attempt=true: not with sweep.until=decided"),
        (["stop_at_fraction=0.5"], "stop_at_fraction=0.5: not with sweep.until=decided"),
        (
            ["hydra/launcher=submitit_local", "hydra.launcher.wait=false"],
            "hydra.launcher.wait=false: sweep.until=decided waits for each look",
        ),
    ],
)
def test_refusals(lab: Lab, words: list[str], message: str) -> None:
    with pytest.raises(BadInput) as error:
        until(lab, *words, main=Trainer())
    assert str(error.value).startswith(message) and not lab.study("study").exists()


@pytest.mark.parametrize(
    "text", ["maybe", "precision", "precision=0", "precision=-1", "precision=nan", "precision=1.2.3"]
)
def test_what_seeds_can_be_added_until(text: str) -> None:
    message = error_message("train", ["-m", f"sweep.until={text}", "training.seed=1,2"])
    assert message.startswith(f"sweep.until={text}: ") and "decided" in message


def test_a_tolerance_needs_it() -> None:
    assert error_message("train", ["-m", "sweep.tolerance=0.1", "training.seed=1,2"]).startswith(
        "sweep.tolerance=0.1: is for sweep.until=decided"
    )
