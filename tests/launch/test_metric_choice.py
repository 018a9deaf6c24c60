"""Halving and searches compare only what is comparable: refused before anything is trained, or by bits per byte."""

from pathlib import Path

import pytest

from cli.sweep_request import read_sweep
from launch.halving import group_candidates, read_decisions, score_candidates
from launch.metric_choice import check_comparable, choose_metric, search_plans
from launch.study import PlannedRun, Study
from launch.sweep import run_sweep
from nanogpt.config import Metric, TrainConfig
from nanogpt.errors import BadInput
from tests.experiments.fake_runs import made_config, write_run
from tests.experiments.test_measured import measured

BASE = ["name=x", "data=text", "data.source=in.txt", "schedule.warmup_steps=1", "training.steps=9", "hardware=cpu"]


def configs(*words: str) -> list[TrainConfig]:
    given = [word for word in BASE if word.partition("=")[0] not in {one.partition("=")[0] for one in words}]
    return [point.config for point in read_sweep("train", TrainConfig, [*given, *words], multirun=True).points]


@pytest.mark.parametrize(
    ("words", "asked", "metric"),
    [
        (["optimizer.lr=1e-3,1e-2"], "val_loss", "val_loss"),
        (["optimizer.lr=1e-3,1e-2", "hardware.precision=bf16"], "best_val_loss", "best_val_loss"),
        (["optimizer.lr=1e-3,1e-2", "hardware.device=auto"], "val_loss", "val_loss"),
        (["hardware.precision=auto,fp32"], "val_loss", "val_loss"),
        (["data.tokenizer=char,byte,gpt2"], "val_loss", "val_bpb"),
        (["data.tokenizer=char,byte,gpt2"], "best_val_loss", "best_val_bpb"),
        (["model.block_size=32,64"], "val_loss", "val_bpb"),
        (["eval.tokens=1024,2048"], "val_loss", "val_bpb"),
        (["data.tokenizer=char,byte"], "val_bpb", "val_bpb"),
        (["model=tiny,tiny_modern"], "val_loss", "val_loss"),
    ],
)
def test_the_metric_that_decides(words: list[str], asked: Metric, metric: Metric) -> None:
    assert choose_metric(configs(*words), asked, "hydra/sweeper=halving") == metric


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["data.source=a.txt,b.txt"], r"the validation text differs \(a.txt, b.txt\)"),
        (["data.val_fraction=0.1,0.2"], "the validation text differs"),
        (["hardware.precision=fp32,bf16"], r"the precision differs \(fp32, bf16\)"),
        (["hardware.precision=auto,bf16"], r"the precision differs \(fp32, bf16\)"),
        (["hardware.precision=auto,fp32", "hardware.device=auto"], "the precision differs"),
        (["data.tokenizer=char,byte", "hardware.precision=fp32,bf16"], "the precision differs"),
    ],
)
@pytest.mark.parametrize("metric", ["val_loss", "val_bpb"])
def test_what_can_t_be_compared_is_refused(words: list[str], why: str, metric: Metric) -> None:
    with pytest.raises(BadInput, match=why):
        choose_metric(configs(*words), metric, "hydra/sweeper=halving")


@pytest.mark.parametrize("sweeper", ["halving", "optuna"])
def test_nothing_is_trained_before_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweeper: str) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for word in BASE if "source" not in word]
    sweep = read_sweep(
        "train", TrainConfig, [*words, f"hydra/sweeper={sweeper}", "data.source=a.txt,b.txt"], multirun=True
    )

    def main(config: TrainConfig) -> int:
        raise AssertionError("trained")

    with pytest.raises(BadInput, match=f"hydra/sweeper={sweeper}: its points can't be compared with each other"):
        run_sweep(sweep, main)
    assert not list(tmp_path.iterdir())


def test_a_search_looks_at_every_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*BASE, "hydra/sweeper=optuna", "data.tokenizer=char,byte", "optimizer.lr=interval(1e-4,1e-2)"]
    sweep = read_sweep("train", TrainConfig, words, multirun=True)
    assert sweep.space is not None
    plans = search_plans(sweep.space, sweep.points[0].config)
    assert {one.data.tokenizer for one in plans} == {"char", "byte"} and len(plans) == 3
    assert choose_metric(plans, "val_loss", "hydra/sweeper=optuna") == "val_bpb"


@pytest.mark.parametrize("name", ["final", "best"])
def test_old_names_are_told_the_new_ones(name: str) -> None:
    new = {"final": "val_loss", "best": "best_val_loss"}[name]
    with pytest.raises(BadInput, match=f"hydra.sweeper.metric={name}: was renamed to {new}"):
        read_sweep(
            "train", TrainConfig, [*BASE, "hydra/sweeper=halving", f"hydra.sweeper.metric={name}"], multirun=True
        )


def members(folder: Path, *starts: dict[str, object]) -> list[PlannedRun]:
    """Write finished runs of the tiny config with these starts."""
    found: list[PlannedRun] = []
    for i, start in enumerate(starts):
        config = made_config(**{"training.steps": 10, "optimizer.lr": 1e-3 * (i + 1)})
        path = write_run(folder, [5.0, 3.0 - i], name=f"r{i}", config=config, starts=[start])
        (path / "checkpoints" / "step-00000010").mkdir(parents=True)
        found.append(PlannedRun(path, config))
    return found


def test_a_rung_decides_nothing_over_what_was_measured_on_other_texts(tmp_path: Path) -> None:
    """The file has changed between two points: their configs don't show it."""
    study = Study(tmp_path, members(tmp_path, measured(text="a"), measured(text="b")))
    with pytest.raises(BadInput, match="can't decide between these runs, because the validation text differs"):
        score_candidates(study, group_candidates(study.runs), "val_loss")
    assert read_decisions(tmp_path, "val_loss") == {}


def test_a_rung_keeps_what_it_decided_by(tmp_path: Path) -> None:
    study = Study(tmp_path, members(tmp_path, measured("char"), measured("gpt2")))
    with pytest.raises(BadInput, match=r"metric=val_loss: can't decide"):
        check_comparable(study.runs, "val_loss")
    left = group_candidates(study.runs)
    assert score_candidates(study, left, "val_bpb") == "" and left[1].val == pytest.approx(2.0 / 0.6931)
    assert read_decisions(tmp_path, "val_bpb") == {f"{m.path.name} 1.0": one.val for m, one in zip(study.runs, left)}  # noqa: B905
    assert read_decisions(tmp_path, "val_loss") == {}
