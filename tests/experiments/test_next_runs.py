"""Proposals for the next runs of a study, and that their commands are what they say."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from cli.sweep_request import read_configs
from experiments.next_runs import propose_runs, step_beyond
from nanogpt.config import NextConfig, TrainConfig
from nanogpt.errors import BadInput
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.schema import signature
from tests.experiments.fake_runs import seeds, write_run
from tests.json_documents import read_strict


def propose(folder: Path, capsys: pytest.CaptureFixture[str], **settings: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert propose_runs(NextConfig(targets=(str(folder),), format="json", **settings)) == 0
    return read_strict(capsys.readouterr().out)


def planned(command: str) -> TrainConfig:
    words = shlex.split(command)
    assert words[:2] == ["nanogpt", "train"]
    (config,) = read_configs("train", TrainConfig, words[2:])
    return config


def test_seeds_for_what_is_not_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    seeds(study, [2.0, 2.1, 2.05], **{"optimizer.lr": 1e-2})
    seeds(study, [2.06, 2.12, 2.0], **{"optimizer.lr": 3e-3})
    seeds(study, [5.0, 5.1, 5.2], **{"optimizer.lr": 1e-3})
    found = propose(study, capsys, most=3)
    beyond, first, second = found["proposals"]
    assert found["best"] == "lr=0.01" and beyond["setting"].startswith("optimizer.lr=0.033 instead of 0.01")
    assert beyond["gain"] is None and [run["seed"] for run in beyond["runs"]] == [1, 2, 3]
    assert {first["setting"], second["setting"]} == {"lr=0.01", "lr=0.003"}
    assert first["half_width_then"] == pytest.approx(second["half_width"]) and first["gain"] > second["gain"] > 0
    assert first["gain_per_hour"] == pytest.approx(3600 * first["gain"] / first["cost_s"])
    for proposal, lr in ((first, None), (second, None), (beyond, 0.033)):
        for run in proposal["runs"]:
            config = planned(run["command"])
            assert config.training.seed == run["seed"] and locate_run(config).parent == study
            base = RunDirectory(next(study.glob("seed1-*"))).read_config()
            rate = lr or float(proposal["setting"].partition("=")[2])
            optimizer = base.optimizer.model_copy(update={"lr": rate})
            training = base.training.model_copy(update={"seed": run["seed"]})
            assert signature(config) == signature(
                base.model_copy(update={"optimizer": optimizer, "training": training})
            )
            assert not locate_run(config).exists()
    assert first["runs"][0]["seed"] == second["runs"][0]["seed"] == 4


def test_the_text_has_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    seeds(study, [2.0, 2.1], **{"optimizer.lr": 1e-2})
    seeds(study, [2.06, 2.12], **{"optimizer.lr": 3e-3})
    commands = [run["command"] for proposal in propose(study, capsys)["proposals"] for run in proposal["runs"]]
    assert propose_runs(NextConfig(targets=(str(study),))) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in commands) and "study: the best is lr=0.01" in shown


def test_seeds_that_others_have_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    seeds(study, [2.0, 2.1, 2.05, 2.02, 2.07, 2.04, 2.03], **{"model.dropout": 0.1})
    seeds(study, [2.06, 2.12], **{"model.dropout": 0.2})
    write_run(study, [5.0, 2.6, 2.1], name="seed4", state="running", **{"training.seed": 4, "model.dropout": 0.2})  # type: ignore[arg-type]
    found = propose(study, capsys, most=3)
    more = [run["seed"] for p in found["proposals"] if p["setting"] == "dropout=0.2" for run in p["runs"]]
    assert more == [3, 5], "seed 4 is being trained"
    assert found["notes"] == ["runs that are not finished: 1; the command that started the study continues them"]


def test_single_seeds_need_a_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lr, loss in {1e-3: 2.2, 3e-3: 2.0, 1e-2: 2.1}.items():
        write_run(tmp_path / "study", [5.0, loss], **{"optimizer.lr": lr})  # type: ignore[arg-type]
    found = propose(tmp_path / "study", capsys)["proposals"]
    assert [proposal["setting"] for proposal in found] == ["lr=0.003", "lr=0.01"]
    assert all(p["why"] == "no setting has two seeds" and p["gain"] is p["half_width"] is None for p in found)


def test_where_nothing_is_to_be_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lr, losses in {1e-3: [4.0, 4.01], 3e-3: [2.0, 2.01], 1e-2: [3.0, 3.01]}.items():
        seeds(tmp_path / "study", losses, **{"optimizer.lr": lr})
    assert propose(tmp_path / "study", capsys)["proposals"] == []
    assert propose_runs(NextConfig(targets=(str(tmp_path / "study"),))) == 0
    assert "nothing to add: every other setting is decided" in capsys.readouterr().out


def test_a_value_that_diverged_is_not_proposed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    for lr, loss in {1e-3: 2.2, 1e-2: 2.0}.items():
        write_run(study, [5.0, loss], **{"optimizer.lr": lr})  # type: ignore[arg-type]
    write_run(study, [5.0], state="diverged", **{"optimizer.lr": 0.1})  # type: ignore[arg-type]
    assert not any("instead" in proposal["setting"] for proposal in propose(study, capsys)["proposals"])


def test_nothing_is_finished(tmp_path: Path) -> None:
    write_run(tmp_path / "study", [5.0], state="running")
    with pytest.raises(BadInput, match="no run has finished yet"):
        propose_runs(NextConfig(targets=(str(tmp_path / "study"),)))


@pytest.mark.parametrize(
    ("numbers", "beyond"),
    [([1e-2, 1e-3, 3e-3], 1e-2 * 1e-2 / 3e-3), ([1e-4, 1e-3, 1e-2], 1e-5), ([0.2, 0.0, 0.1], 0.3), ([8, 2, 4], 16)],
)
def test_the_next_value(numbers: list[float], beyond: float) -> None:
    assert step_beyond(numbers) == pytest.approx(beyond)
