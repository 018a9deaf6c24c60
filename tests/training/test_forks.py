"""Copies of run directories, and forks on purpose: runs of their own, with their parent's state and rows."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.compose import Point
from launch.study import plan_runs
from nanogpt.config import TrainConfig
from nanogpt.errors import BadCheckpoint, BadInput
from nanogpt.run_directory import RunDirectory, locate_run, open_run
from nanogpt.tracking.origin import FILE, read_origin, update_origin
from nanogpt.tracking.run_metadata import make_run_metadata
from nanogpt.training.run import train
from tests import ranks

Build = Callable[..., TrainConfig]


def tracker_id(config: TrainConfig, path: Path) -> str:
    return make_run_metadata(config, path, RunDirectory(path).read_starts()).id


def test_a_copy_is_a_fork_and_a_moved_folder_is_not(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    half = config(stop_at_fraction=0.5)
    train(half)
    path = locate_run(half)
    first = tracker_id(half, path)
    (path / "wandb.json").write_text(json.dumps({"id": first, "project": "p", "last": 10}))
    copy = path.with_name("copy")
    shutil.copytree(path, copy)
    capsys.readouterr()
    assert train(config(**{"resume.run": str(copy)})) == 0
    assert f"forked at step 10 from {path}: a run of its own" in capsys.readouterr().out
    second = tracker_id(half, copy)
    assert first != second and not (copy / "wandb.json").exists() and (path / "wandb.json").exists()
    assert RunDirectory(copy).read_starts()[-1]["forked_from"] == {"id": first, "path": str(path), "step": 10}
    moved = path.with_name("moved")
    os.rename(path, moved)
    assert train(config(**{"resume.run": str(moved)})) == 0
    assert tracker_id(half, moved) == first and tracker_id(half, copy) == second
    assert (moved / "metrics.jsonl").read_bytes() == (copy / "metrics.jsonl").read_bytes()


def test_who_is_the_original(tmp_path: Path) -> None:
    """Of folders that are renamed, copied, swapped, put back from a backup, or brought from another machine."""
    for name in ("a", "other"):
        (tmp_path / name).mkdir()
    a, b = tmp_path / "a", tmp_path / "b"
    origin, forked = update_origin(a, {}, 0)
    assert not forked and update_origin(a, {}, 0) == (origin, False)
    shutil.copytree(a, b)
    away = json.loads((b / FILE).read_text()) | {"device": 0}
    shutil.move(a, tmp_path / "other" / "a")
    (b / FILE).write_text(json.dumps(away))
    assert update_origin(b, {}, 3)[0].id == origin.id  # from another file system, where it is no more: moved
    shutil.rmtree(b)
    shutil.copytree(tmp_path / "other" / "a", b)
    assert update_origin(b, {}, 3)[1] is True  # in the same one: a copy, wherever the original is now
    assert update_origin(tmp_path / "other" / "a", {}, 3) == (read_origin(tmp_path / "other" / "a"), False)
    swapped = tmp_path / "c"
    kept = update_origin(b, {}, 3)[0].id
    os.rename(b, swapped)
    shutil.copytree(swapped, b)
    assert update_origin(b, {}, 3)[1] is True and update_origin(swapped, {}, 3)[0].id == kept
    away = json.loads((b / FILE).read_text()) | {"path": "/nowhere", "inode": 1, "host": "elsewhere"}
    (b / FILE).write_text(json.dumps(away))
    assert update_origin(b, {}, 3)[1] is True


def test_a_fork_without_changes_continues_to_the_parents_bits(config: Build) -> None:
    train(config(**{"checkpoint.keep": 10}))
    parent = locate_run(config())
    fork = config(name="fork", **{"resume.run": str(parent), "resume.fork": True, "resume.step": 12})
    assert train(fork) == 0
    path = locate_run(fork)
    assert path != parent and ranks.result(fork) == ranks.result(config())
    origin = read_origin(path)
    assert origin and origin.forked_from and origin.forked_from.step == 12 and origin.id != read_origin(parent).id  # type: ignore[union-attr]
    assert tracker_id(fork, path) != tracker_id(config(), parent)


def test_a_fork_may_have_other_settings_and_the_same_command_continues_it(
    config: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config())
    parent, before = locate_run(config()), (locate_run(config()) / "metrics.jsonl").read_bytes()
    changes = {"training.steps": 30, "optimizer.lr": 1e-3, "training.seed": 5, "hardware.precision": "bf16"}
    fork = {**changes, "name": "fork", "resume.run": parent.name, "resume.fork": True}
    assert train(config(**fork, stop_at_fraction=0.8)) == 0
    assert train(config(**fork)) == 0
    path = locate_run(config(**fork))
    assert RunDirectory(path).checkpoints.steps()[-1] == 30
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(2, 31, 2))
    capsys.readouterr()
    assert train(config(**fork)) == 0
    assert "finished already, at step 30" in capsys.readouterr().out
    assert (parent / "metrics.jsonl").read_bytes() == before
    assert locate_run(config(**(fork | {"resume.fork": False}))) == parent
    assert locate_run(config(**changes, name="fork")) != path  # not the run from the start


def test_points_of_a_sweep_fork_a_run_that_is_given_by_its_name(config: Build) -> None:
    train(config(stop_at_fraction=0.5))
    parent = locate_run(config())
    points = [Point(config(**{"resume.run": parent.name, "resume.fork": True, "training.seed": n}), {}) for n in (1, 2)]
    members = plan_runs(parent.parent / "study", points)
    for member in members:
        assert locate_run(member.config) == member.path
        with open_run(member.config) as run:
            assert run.new_fork and run.checkpoints.steps() == [10]


def test_what_can_t_be_forked(config: Build) -> None:
    train(config(**{"training.steps": 8}))
    parent = locate_run(config(**{"training.steps": 8}))
    fork = {"resume.run": str(parent), "resume.fork": True, "name": "fork"}
    for changes, message in (
        ({"model.n_layer": 3}, r"can't be used with other values: model.n_layer \(was 2, now 3\)"),
        ({"optimizer.name": "muon"}, r"optimizer.name \(was adamw, now muon\)"),
        ({"resume.step": 3}, r"resume.step=3: .* there: .*8"),
    ):
        with pytest.raises(BadCheckpoint, match=message):
            train(config(**fork, **changes))
        assert os.listdir(parent.parent) == [parent.name]
    with pytest.raises(BadInput, match=r"resume.fork=true: needs the run to fork"):
        config(**{"resume.fork": True})
    with pytest.raises(BadInput, match=r"resume.step=3: chooses the checkpoint of a fork"):
        config(**{"resume.step": 3})
