"""Folders of the points of a sweep: the same command finds them again after changes that don't affect results."""

import json
import os
from pathlib import Path

import pytest

from cli.sweep_request import read_sweep
from launch.study import Study, find_study, plan_single_run, plan_study
from launch.submission import Submission
from nanogpt.config import TrainConfig
from nanogpt.errors import BadCheckpoint, BadInput
from nanogpt.run_directory import locate_run


def study(*words: str, runs_dir: Path | None = None) -> Study:
    given = [*words, f"runs_dir={runs_dir}"] if runs_dir else list(words)
    return plan_study(read_sweep("train", TrainConfig, given, multirun=True))


def names(one: Study) -> list[str]:
    return [planned.path.name.rpartition("-")[0] for planned in one.runs]


def test_points_are_named_by_what_they_change() -> None:
    made = study("optimizer.lr=1e-3,3e-4", "model.dropout=0,0.1")
    assert str(made.path) == "runs/tiny-pystdlib-dropout-lr"
    assert names(made) == ["dropout0-lr0.001", "dropout0.1-lr0.001", "dropout0-lr0.0003", "dropout0.1-lr0.0003"]
    assert all(locate_run(planned.config) == planned.path for planned in made.runs)
    assert names(study("optimizer.betas=[0.9,0.95],[0.8,0.9]")) == ["betas0.9_0.95", "betas0.8_0.9"]
    assert str(study("model=tiny,baby").path) == "runs/pystdlib-model"
    assert str(study("experiment=isoflop_cpu").path) == "runs/isoflop_cpu"
    assert str(study("experiment=isoflop_cpu", "model.n_embd=16,32").path) == "runs/isoflop_cpu"
    assert str(study("experiment=isoflop_cpu", "optimizer.lr=1e-3,1e-2").path) == "runs/isoflop_cpu-lr"
    assert str(study("name=mine", "model.n_embd=16,32", "training.steps=400").path) == "runs/mine"


def test_listed_points_have_the_names_of_their_own_keys() -> None:
    made = study("sweep.points=[{model.dropout:0.1},{training.seed:2},{training.seed:3,model.dropout:0.2}]")
    assert names(made) == ["dropout0.1", "seed2", "dropout0.2-seed3"]


def test_order_spelling_and_hardware_do_not_matter() -> None:
    one = study("optimizer.lr=1e-3,3e-4", "model.dropout=0,0.1", "training.steps=400")
    other = study(
        "model.dropout=0.1,0.0",
        "training.steps=400",
        "optimizer.lr=0.0003,0.001",
        "hardware=cpu",
        "hydra/launcher=submitit_slurm",
    )
    assert one.path == other.path
    assert {planned.path for planned in one.runs} == {planned.path for planned in other.runs}
    assert study("optimizer.lr=1e-3,3e-4", "model.dropout=0,0.1", "training.steps=500").path != one.path


def test_a_run_that_is_there_keeps_its_name(tmp_path: Path) -> None:
    """As when a key is swept that wasn't before, in a study with a given name."""
    before = study("name=mine", "optimizer.lr=1e-3,3e-4", "training.seed=1", runs_dir=tmp_path).runs[0].path
    before.mkdir(parents=True)
    again = study("name=mine", "optimizer.lr=1e-3,3e-4", "training.seed=1,2", runs_dir=tmp_path)
    assert again.runs[0].path == before and again.runs[1].path.name.startswith("lr0.001-seed2-")


def test_another_attempt_is_beside_the_first(tmp_path: Path) -> None:
    words = ("name=mine", "training.seed=1,2")
    first = study(*words, runs_dir=tmp_path).runs[0].path
    first.mkdir(parents=True)
    fresh = study(*words, "new_attempt=true", runs_dir=tmp_path).runs
    assert fresh[0].path.name == f"{first.name}-2"
    fresh[0].path.mkdir()
    assert study(*words, runs_dir=tmp_path).runs[0].path == fresh[0].path


def test_twins_are_refused() -> None:
    with pytest.raises(BadInput, match=r"points 1 and 2 are the same run: hardware.threads=1 and hardware"):
        study("hardware.threads=1,2")
    with pytest.raises(BadInput, match="points 1 and 3 are the same run"):
        study("optimizer.lr=1e-3,2e-3,0.001")


def test_points_that_are_there_are_found_by_a_listing(tmp_path: Path) -> None:
    """Each looks at the folder's listing, not at the folder."""
    words = [f"optimizer.lr={','.join(str(n * 1e-5) for n in range(1, 31))}", "name=many"]
    for planned in study(*words, runs_dir=tmp_path).runs:
        os.makedirs(planned.path)
    assert len({planned.path for planned in study(*words, runs_dir=tmp_path).runs}) == 30


def test_studies_are_found_by_folder_name_run_and_nearest(tmp_path: Path) -> None:
    one = plan_single_run(read_sweep("train", TrainConfig, [f"runs_dir={tmp_path}", "name=single"]).points[0].config)
    (one.path / ".launch").mkdir(parents=True)
    (tmp_path / "dropout-lr" / ".launch").mkdir(parents=True)
    (tmp_path / "dropout-lr" / "lr1").mkdir()
    runs = str(tmp_path)
    assert find_study("dropout-lr", runs) == (tmp_path / "dropout-lr", None)
    assert find_study(f"{tmp_path}/dropout-lr/lr1/", runs) == (tmp_path / "dropout-lr", "lr1")
    assert find_study("single", runs) == (one.path, None)
    with pytest.raises(BadInput, match="not a study or run that was submitted; did you mean 'dropout-lr'"):
        find_study("dropuot-lr", runs)
    with pytest.raises(BadInput, match="nothing was submitted"):
        find_study(None, str(tmp_path / "nowhere"))


def test_a_submission_of_the_first_release_keeps_its_launcher(tmp_path: Path) -> None:
    """Keys that were renamed since are read; a key that never was is named."""
    first = {"timeout_min": 30, "array_parallelism": None, "setup": ["true"], "max_requeues": 5, "max_fruitless": 7}
    facts = {"resources": {}, "code": "", "cwd": "", "logs": "", "python": "", "command": [], "time": 0.0, "jobs": []}
    for number, executor, launcher in ((1, "local", first), (2, "slurm", first | {"partition": "dev"})):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "submission.json").write_text(
            json.dumps(facts | {"executor": executor, "launcher": launcher | {"executor": executor}})
        )
        read = Submission(tmp_path / str(number)).launcher
        assert (read.executor, read.max_requeues, read.max_restarts_without_progress) == (executor, 5, 7)
        assert (read.timeout_min, read.setup, read.signal_delay_s) == (30, ("true",), 120)
    text = (tmp_path / "1" / "submission.json").read_text().replace("max_fruitless", "max_fruitles")
    (tmp_path / "1" / "submission.json").write_text(text)
    with pytest.raises(BadCheckpoint, match=r"submission\.json: damaged: launcher\.max_fruitles: no such key"):
        _ = Submission(tmp_path / "1").launcher
