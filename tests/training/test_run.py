"""Whole runs: what they leave behind, that they continue exactly, and how they end."""

import dataclasses
import hashlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanogpt import checkpoint
from nanogpt.config import SampleConfig, TrainConfig
from nanogpt.errors import BadCheckpoint, BadData, BadEnvironment, BadInput, Diverged, Locked
from nanogpt.files import locked
from nanogpt.run_directory import RunDirectory, find, locate
from nanogpt.sampling import sample
from nanogpt.schema import to_json
from nanogpt.tracking.metrics import read_rows
from nanogpt.training import loop
from nanogpt.training.run import train

Build = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]

# Runs a config in a process of its own: `python -c WORKER config.json`
WORKER = """
import sys
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.errors import LabError
from nanogpt.training.run import train
import torch
torch.set_num_threads(2)
try:
    sys.exit(train(schema.from_dict(TrainConfig, __import__('json').load(open(sys.argv[1])))))
except LabError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def launch(config: TrainConfig, folder: Path) -> subprocess.Popen[str]:
    path = folder / "config.json"
    path.write_text(to_json(config))
    command = [sys.executable, "-c", WORKER, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def result(config: TrainConfig) -> dict[str, str]:
    """Digests of all that must not depend on what happened on the way."""
    path = locate(config)
    names = ["metrics.jsonl", "tokenizer.json"]
    names += [f"checkpoints/step-00000020/{part}.safetensors" for part in ("model", "optimizer")]
    names += [str(sample.relative_to(path)) for sample in sorted(path.glob("samples/*"))]
    return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture
def undisturbed(config: Build, tmp_path: Path) -> dict[str, str]:
    """The result of a run that nothing happened to."""
    same = config(runs_dir=str(tmp_path / "undisturbed"))
    assert train(same) == 0
    return result(same)


def test_what_a_run_leaves_behind(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    built = config()
    assert train(built) == 0
    path = locate(built)
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
    for expected in ("train loss", "val loss", "sample (", str(path), "loss.png", "next:", "sample.py run="):
        assert expected in shown


def test_newest_two_and_best_are_kept(config: Build) -> None:
    train(config())
    checkpoints = RunDirectory(locate(config())).checkpoints
    best = checkpoints.best_step()
    assert set(checkpoints.steps()) == {16, 20, best}
    losses = {
        row["step"]: row["val_loss"] for row in read_rows(locate(config()) / "metrics.jsonl") if "val_loss" in row
    }
    assert best == min(losses, key=lambda step: losses[step])


def test_the_same_command_says_it_is_finished(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    train(config())
    before = result(config())
    capsys.readouterr()
    assert train(config()) == 0
    assert "finished already, at step 20" in capsys.readouterr().out
    assert result(config()) == before


def test_fresh_starts_beside_and_is_then_continued(config: Build, undisturbed: dict[str, str]) -> None:
    train(config())
    first = locate(config())
    again = config(fresh=True)
    second = locate(again)
    assert train(again) == 0
    assert second.name == first.name + "-2" and locate(config()) == second
    assert result(config()) == undisturbed


@pytest.mark.parametrize("moment", [2, 7, 12])
def test_killed_and_run_again_is_bit_identical(
    config: Build, tmp_path: Path, undisturbed: dict[str, str], moment: int
) -> None:
    """kill -9 when some rows are written, then the same command: the same bytes as if nothing had happened."""
    built = config()
    process = launch(built, tmp_path)
    metrics = locate(built) / "metrics.jsonl"
    while process.poll() is None and len(read_rows(metrics)) < moment:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was still running"
    assert train(built) == 0
    assert result(built) == undisturbed
    assert not list(locate(built).glob("checkpoints/.*"))


class Killed(BaseException):
    """The process is gone: no handler of an ordinary exception sees it."""


@pytest.mark.parametrize("call", [14, 16, 17, 18, "prune"])
def test_killed_inside_a_save(
    config: Build, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch, call: int | str
) -> None:
    """Gone in the third save: at a file, the manifest, the whole folder, the rename (six syncs a save), or pruning."""
    built, calls = config(), 0
    name, target = ("prune", checkpoint.Checkpoints) if call == "prune" else ("sync", checkpoint)
    real = getattr(target, name)

    def dying(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == (3 if call == "prune" else call):
            raise Killed
        real(*arguments)

    monkeypatch.setattr(target, name, dying)
    with pytest.raises(Killed):
        train(built)
    monkeypatch.undo()
    assert train(built) == 0
    assert result(built) == undisturbed
    assert not list(locate(built).glob("checkpoints/.*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_stop_at_a_step_boundary_with_everything_saved(
    config: Build,
    undisturbed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    built = config()
    real = loop.train_step
    handler = signal.getsignal(number)

    def interrupted(state, *rest):  # type: ignore[no-untyped-def]
        if state.step == 7:
            os.kill(os.getpid(), number)
        return real(state, *rest)

    monkeypatch.setattr(loop, "train_step", interrupted)
    assert train(built) == 85
    assert f"{number.name}: stopped at step 8, all saved; the same command continues" in capsys.readouterr().out
    assert 8 in RunDirectory(locate(built)).checkpoints.steps()
    monkeypatch.undo()
    assert train(built) == 0
    assert result(built) == undisturbed
    assert signal.getsignal(number) is handler


@pytest.mark.parametrize("evaluation", [1, 3, 5], ids=["first", "middle", "last"])
@pytest.mark.parametrize("then", ["finish", "die"])
def test_a_stop_during_an_evaluation_loses_no_row(
    config: Build, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch, evaluation: int, then: str
) -> None:
    """Asked to stop inside an evaluation, and killed once more after the restart: the rows are what they would be."""
    built, calls = config(), 0
    real = loop.LossEvaluation.split_loss

    def stopped(self, model, split, places, should_stop):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += split.name == "train"
        if calls == evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, model, split, places, should_stop)

    with monkeypatch.context() as patch:
        patch.setattr(loop.LossEvaluation, "split_loss", stopped)
        assert train(built) == 85
    if then == "die":
        after = 0

        def dying(*arguments: object) -> None:
            nonlocal after
            after += 1
            if after == 2:
                raise Killed
            real_step(*arguments)

        real_step = loop.note_results
        with monkeypatch.context() as patch:
            patch.setattr(loop, "note_results", dying)
            if evaluation < 5:
                with pytest.raises(Killed):
                    train(built)
    assert train(built) == 0
    assert result(built) == undisturbed
    assert RunDirectory(locate(built)).checkpoints.newest()[0].state["evaluated"] == 20  # type: ignore[union-attr]


def test_sampling_never_touches_the_checkpoints_of_a_live_run(config: Build) -> None:
    """A damaged newest checkpoint is read around, and stays where it is for the process that owns the run."""
    built = config()
    train(built)
    run = RunDirectory(locate(built))
    os.truncate(run.checkpoints.path(20) / "model.safetensors", 100)
    loaded, bad = run.checkpoints.newest()
    assert loaded is not None and loaded.state["step"] < 20 and len(bad) == 1
    assert 20 in run.checkpoints.steps()


def test_a_validation_loss_that_is_not_a_number_is_divergence(config: Build) -> None:
    wild = {"optimizer.lr": 10.0, "optimizer.grad_clip": 0.0, "optimizer.weight_decay": 10.0}
    built = config(**wild, **{"eval.every": 7, "tracking.log_every": 1000, "training.steps": 200})
    with pytest.raises(Diverged, match=r"not finite|validation loss is|loss"):
        train(built)
    assert json.loads((locate(built) / "status.json").read_text())["state"] == "diverged"


def test_fp16_hides_no_nan(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler skips every step of a loss that is NaN; that is divergence too."""
    built = config()
    real = loop.train_step

    def poisoned(state, *rest):  # type: ignore[no-untyped-def]
        state.scaler = torch.amp.GradScaler("cpu", enabled=True)
        metrics = real(state, *rest)
        return dataclasses.replace(metrics, loss=metrics.loss * float("nan"))

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(Diverged, match="loss nan"):
        train(built)


def test_text_without_a_newline_is_trained_and_sampled(config: Build, tmp_path: Path) -> None:
    (tmp_path / "dna.txt").write_text("ACGT" * 1000 + "GATTACA" * 500)
    built = config(**{"data.source": str(tmp_path / "dna.txt"), "training.steps": 2})
    assert train(built) == 0
    assert sample(SampleConfig(runs_dir=built.runs_dir, max_new_tokens=5)) == 0


def test_changed_arithmetic_is_told(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    train(config())
    capsys.readouterr()
    train(config(**{"hardware.micro_batch_size": 2}))
    assert "'micro_batch_size': 2" in capsys.readouterr().out


def test_out_of_memory_names_a_smaller_micro_batch(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "train_step", exhausted)
    with pytest.raises(BadEnvironment, match=r"out of memory; try hardware.micro_batch_size=4"):
        train(config())


def test_a_corrupt_checkpoint_is_named_and_the_one_before_is_used(
    config: Build, undisturbed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    train(config())
    path = locate(config())
    file = path / "checkpoints/step-00000020/model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    capsys.readouterr()
    assert train(config()) == 0
    shown = capsys.readouterr().out
    assert "model.safetensors: corrupt" in shown and "continuing at step" in shown
    assert result(config()) == undisturbed
    assert (path / "checkpoints/.bad-step-00000020").is_dir()


def test_no_good_checkpoint_is_an_error_not_a_new_start(config: Build) -> None:
    train(config())
    for file in locate(config()).glob("checkpoints/step-*/state.json"):
        file.write_text("{}")
    with pytest.raises(BadCheckpoint, match=r"no usable checkpoint: .*state.json.*fresh=true"):
        train(config())


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest", "pickle"])
def test_every_kind_of_damage_is_found(config: Build, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(config())
    folder = locate(config()) / "checkpoints/step-00000020"
    if damage == "cut":
        os.truncate(folder / "optimizer.safetensors", 100)
    elif damage == "missing":
        (folder / "optimizer.safetensors").unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("[]")
    else:
        torch.save({"a": 1}, folder / "optimizer.safetensors")
    assert train(config()) == 0
    assert "warning: " in capsys.readouterr().out


def test_a_directory_has_one_owner(config: Build) -> None:
    built = config()
    locate(built).mkdir(parents=True)
    with locked(locate(built) / ".lock", wait=False) as mine:
        assert mine
        with pytest.raises(Locked, match="is training here"):
            train(built)
    assert Locked.exit_code == 75
    assert train(built) == 0


def test_other_data_under_the_same_run_is_refused(config: Build, corpus: Path, tmp_path: Path) -> None:
    built = config()
    train(built)
    corpus.write_text(corpus.read_text()[::-1])
    elsewhere = config(**{"data.dir": str(tmp_path / "data2")})
    with pytest.raises(BadData, match=r"not the data this run was trained on"):
        train(elsewhere)


def test_a_diverging_run_ends_and_keeps_its_last_good_checkpoint(
    config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = config()
    real = loop.train_step

    def poisoned(state, *rest):  # type: ignore[no-untyped-def]
        metrics = real(state, *rest)
        if state.step == 11:
            with torch.no_grad():
                next(state.model.parameters()).fill_(float("nan"))
        return metrics

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(Diverged, match=r"step 12"):
        train(built)
    checkpoints = RunDirectory(locate(built)).checkpoints
    loaded, warnings = checkpoints.newest()
    assert loaded is not None and not warnings and loaded.state["step"] <= 10
    assert all(bool(torch.isfinite(tensor).all()) for tensor in loaded.model.values())
    assert json.loads((locate(built) / "status.json").read_text())["state"] == "diverged"


def test_a_full_disk_leaves_the_last_good_checkpoint(
    config: Build, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """File size limited by the system from step 9 on: writing fails as on a full disk."""
    built = config()
    real = loop.train_step
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fills(state, *rest):  # type: ignore[no-untyped-def]
        if state.step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        return real(state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", fills)
        try:
            with pytest.raises((BadEnvironment, OSError)):
                train(built)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    loaded, warnings = RunDirectory(locate(built)).checkpoints.newest()
    assert loaded is not None and not warnings
    assert train(built) == 0
    assert result(built) == undisturbed


def test_evaluation_doesn_t_change_training(config: Build) -> None:
    often, never = config(**{"eval.every": 4}), config(**{"eval.every": 20, "tracking.sample_tokens": 0})
    train(often)
    train(never)
    weights = [hashlib.sha256((locate(c) / LAST).read_bytes()).hexdigest() for c in (often, never)]
    assert weights[0] == weights[1]


LAST = "checkpoints/step-00000020/model.safetensors"


def test_zero_steps_saves_the_start(config: Build) -> None:
    built = config(**{"training.steps": 0})
    assert train(built) == 0
    assert RunDirectory(locate(built)).checkpoints.steps() == [0]


def test_tokens_per_parameter(config: Build) -> None:
    built = config(**{"training.steps": None, "training.tokens_per_param": 0.1})
    assert train(built) == 0
    (step,) = (row["step"] for row in read_rows(locate(built) / "metrics.jsonl")[-1:])
    weights = load_file(locate(built) / f"checkpoints/step-{step:08d}/model.safetensors")
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
        find(None, built.runs_dir)
    train(built)
    path = locate(built)
    assert find(None, built.runs_dir).path == find(str(path), "x").path == find(path.name, built.runs_dir).path == path
    with pytest.raises(BadInput, match=rf"did you mean '{path.name}'"):
        find(path.name[:-1], built.runs_dir)
