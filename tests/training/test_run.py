"""Whole runs: what they leave behind, and how they end. Faults are in other files."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanogpt.config import SampleConfig, TrainConfig
from nanogpt.errors import BadCheckpoint, BadData, BadEnvironment, BadInput
from nanogpt.generation.command import sample
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory, find_run, locate_run
from nanogpt.training import loop
from nanogpt.training.run import train
from tests import ranks

Build = Callable[..., TrainConfig]
Reference = Callable[..., dict[str, str]]


def test_what_a_run_leaves_behind(config: Build, capsys: pytest.CaptureFixture[str], pictures: None) -> None:
    built = config()
    assert train(built) == 0
    path = locate_run(built)
    rows = read_rows(path / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(2, 21, 2))
    assert [row["step"] for row in rows if "val_loss" in row] == [0, 5, 10, 15, 20]
    assert all(row["tokens"] == row["step"] * 128 for row in rows)
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] - 0.5, "it learns"
    assert json.loads((path / "config.json").read_text())["optimizer"]["lr"] == 1e-2
    status = json.loads((path / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"]) == ("finished", 20, 20)
    (start,) = json.loads((path / "provenance.json").read_text())
    assert start["packages"]["torch"] and start["from_step"] == 0
    assert (path / "plots/loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(path.glob("samples/*.txt"))) == 5 and (path / "log.txt").read_text().count("val") == 5
    weights = load_file(path / "checkpoints/step-00000020/model.safetensors")
    assert weights["transformer.h.0.attn.c_attn.weight"].shape == (48, 16)
    shown = capsys.readouterr().out
    for expected in ("train loss", "val loss", "sample (", str(path), "loss.png", "next:", "nanogpt sample run="):
        assert expected in shown


def test_newest_two_and_best_are_kept(config: Build) -> None:
    train(config())
    checkpoints = RunDirectory(locate_run(config())).checkpoints
    best = checkpoints.best_step()
    assert set(checkpoints.steps()) == {16, 20, best}
    losses = {
        row["step"]: row["val_loss"] for row in read_rows(locate_run(config()) / "metrics.jsonl") if "val_loss" in row
    }
    assert best == min(losses, key=lambda step: losses[step])


def test_the_same_command_says_it_is_finished(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    train(config())
    before = ranks.result(config())
    capsys.readouterr()
    assert train(config()) == 0
    assert "finished already, at step 20" in capsys.readouterr().out
    assert ranks.result(config()) == before


def test_fresh_starts_beside_and_is_then_continued(config: Build, undisturbed: Reference) -> None:
    train(config())
    first = locate_run(config())
    again = config(new_attempt=True)
    second = locate_run(again)
    assert train(again) == 0
    assert second.name == first.name + "-2" and locate_run(config()) == second
    assert ranks.result(config()) == undisturbed()


def test_a_longer_run_is_another_and_names_the_one_it_may_go_on_with(
    config: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    first = config()
    assert train(first) == 0 and "differs in" not in capsys.readouterr().out
    longer = config(**{"training.steps": 24})
    assert train(longer) == 0
    path = locate_run(first)
    note = f"{path} differs in training.steps alone; this is another run. To go on with that one: resume.run={path}"
    assert f"{note} resume.allow_change=[training.steps]" in capsys.readouterr().out
    assert train(config(**{"training.steps": 24, "training.seed": 5})) == 0
    assert "differs in" not in capsys.readouterr().out, "another seed is another run"


def test_what_evaluations_take_is_told(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    built = config()
    assert train(built) == 0
    windows = 2 * (built.eval.tokens or 0)
    times = 1 + built.steps(0, 0.0) // built.eval.every
    assert f"eval    {windows:,} tokens, {times} times; about " in capsys.readouterr().out


def test_sampling_never_touches_the_checkpoints_of_a_live_run(config: Build) -> None:
    """A damaged newest checkpoint is read around, and stays where it is for the process that owns the run."""
    built = config()
    train(built)
    run = RunDirectory(locate_run(built))
    os.truncate(run.checkpoints.path(20) / "model.safetensors", 100)
    loaded, bad = run.checkpoints.load_newest()
    assert loaded is not None and loaded.state["step"] < 20 and len(bad) == 1
    assert 20 in run.checkpoints.steps()


def test_text_without_a_newline_is_trained_and_sampled(config: Build, tmp_path: Path) -> None:
    (tmp_path / "dna.txt").write_text("ACGT" * 1000 + "GATTACA" * 500)
    built = config(**{"data.source": str(tmp_path / "dna.txt"), "training.steps": 2})
    assert train(built) == 0
    assert sample(SampleConfig(runs_dir=built.runs_dir, max_new_tokens=5)) == 0


def test_changed_arithmetic_is_told(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    train(config())
    capsys.readouterr()
    train(config(**{"hardware.micro_batch_size": 2}))
    assert "micro_batch_size 8 -> 2: the same data in the same order" in capsys.readouterr().out


def test_out_of_memory_names_a_smaller_micro_batch(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "train_step", exhausted)
    with pytest.raises(
        BadEnvironment,
        match=r"micro_batch_size=8: out of memory; the largest that fits here is hardware.micro_batch_size=4",
    ):
        train(config())


def test_other_data_at_the_same_path_is_another_run(
    config: Build, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config())
    old, text = locate_run(config()), corpus.read_text()
    corpus.write_text(text[::-1])
    capsys.readouterr()
    train(config())
    assert locate_run(config()) != old
    said = capsys.readouterr().out
    assert "(new)" in said and f"{old} began with other content of data.source" in said
    with pytest.raises(BadCheckpoint, match=r"data.source_sha256 \(was [0-9a-f]{64}, now [0-9a-f]{64}\)"):
        train(config(**{"resume.run": str(old)}))
    assert train(config(**{"resume.run": str(old), "resume.allow_change": ["data"]})) == 0
    corpus.write_text(text)


def test_evaluation_doesn_t_change_training(config: Build) -> None:
    often, never = config(**{"eval.every": 4}), config(**{"eval.every": 20, "tracking.sample_tokens": 0})
    train(often)
    train(never)
    weights = [hashlib.sha256((locate_run(c) / LAST).read_bytes()).hexdigest() for c in (often, never)]
    assert weights[0] == weights[1]


LAST = "checkpoints/step-00000020/model.safetensors"


def test_zero_steps_saves_the_start(config: Build) -> None:
    built = config(**{"training.steps": 0})
    assert train(built) == 0
    assert RunDirectory(locate_run(built)).checkpoints.steps() == [0]


def test_tokens_per_parameter(config: Build) -> None:
    built = config(**{"training.steps": None, "training.tokens_per_param": 0.1})
    assert train(built) == 0
    (step,) = (row["step"] for row in read_rows(locate_run(built) / "metrics.jsonl")[-1:])
    weights = load_file(locate_run(built) / f"checkpoints/step-{step:08d}/model.safetensors")
    assert step == math.ceil(math.ceil(0.1 * sum(w.numel() for w in weights.values())) / 128)
    with pytest.raises(BadInput, match=r"schedule.warmup_steps=50: is above the run's length in steps"):
        train(config(**{"training.steps": None, "training.tokens_per_param": 0.1, "schedule.warmup_steps": 50}))


def test_vocabulary_that_doesn_t_fit(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadData, match=r"model.vocab_size=5: the data needs at least"):
        train(config(**{"model.vocab_size": 5}))
    assert train(config(**{"model.vocab_size": 500})) == 0
    assert "warning: model.vocab_size=500" in capsys.readouterr().out


def test_finding_runs(config: Build) -> None:
    built = config()
    with pytest.raises(BadInput, match="train one first"):
        find_run(None, built.runs_dir)
    train(built)
    path = locate_run(built)
    assert (
        find_run(None, built.runs_dir).path
        == find_run(str(path), "x").path
        == find_run(path.name, built.runs_dir).path
        == path
    )
    with pytest.raises(BadInput, match=rf"did you mean '{path.name}'"):
        find_run(path.name[:-1], built.runs_dir)
    with pytest.raises(BadInput, match=rf"a folder of runs; name one of them, e.g. {path}"):
        find_run(built.runs_dir, built.runs_dir)
