"""`python sample.py` as a person uses it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanogpt.completion import Answer
from nanogpt.config import SampleConfig, TaskConfig, TrainConfig
from nanogpt.errors import BadCheckpoint, BadInput
from nanogpt.run_directory import RunDirectory, locate
from nanogpt.sampling import sample
from nanogpt.tokenizer import ByteTokenizer
from nanogpt.trained import of_run
from nanogpt.training.run import train
from tests.conftest import Run

Build = Callable[..., TrainConfig]


@pytest.fixture
def trained(config: Build, capsys: pytest.CaptureFixture[str]) -> TrainConfig:
    built = config(**{"training.steps": 5})
    train(built)
    capsys.readouterr()
    return built


def test_samples_come_from_the_run(trained: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = SampleConfig(runs_dir=trained.runs_dir, prompt="alpha", max_new_tokens=40, num_samples=2)
    assert sample(wanted) == 0
    first = capsys.readouterr().out
    assert first.startswith("--- sample 1 of 2\nalpha") and "--- sample 2 of 2\nalpha" in first
    sample(wanted)
    assert capsys.readouterr().out == first, "the same seed gives the same text"
    sample(wanted.model_copy(update={"seed": 1, "stream": False}))
    assert capsys.readouterr().out != first
    sample(wanted.model_copy(update={"max_new_tokens": 0, "num_samples": 1}))
    assert capsys.readouterr().out == "alpha\n"


def test_unknown_characters_and_runs(trained: TrainConfig) -> None:
    with pytest.raises(BadInput, match=r"prompt=a\?: the character vocabulary of \d+ lacks '\?' at 1"):
        sample(SampleConfig(runs_dir=trained.runs_dir, prompt="a?"))
    with pytest.raises(BadInput, match="not a run directory"):
        sample(SampleConfig(runs_dir=trained.runs_dir, run="nowhere"))


def test_a_corrupt_or_foreign_checkpoint_is_named(trained: TrainConfig, config: Build) -> None:
    folder = locate(trained) / "checkpoints/step-00000005"
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"model.safetensors: has \d+ bytes"):
        sample(SampleConfig(runs_dir=trained.runs_dir))
    os.truncate(folder / "manifest.json", 10)
    with pytest.raises(BadCheckpoint, match=r"manifest.json"):
        sample(SampleConfig(runs_dir=trained.runs_dir))


def test_best_and_latest(config: Build) -> None:
    """They are different weights when the best is not the last."""
    built = config()
    train(built)
    run = RunDirectory(locate(built))
    last = load_file(run.checkpoints.path(20) / "model.safetensors")["transformer.wte.weight"]
    cpu = torch.device("cpu")
    assert torch.equal(of_run(run, "latest", cpu).model.token_embedding.weight, last)
    best = run.checkpoints.best_step()
    assert best is not None
    stored = load_file(run.checkpoints.path(best) / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(of_run(run, "best", cpu).model.token_embedding.weight, stored)


def test_a_character_of_several_tokens_is_shown_when_it_is_whole() -> None:
    """Bytes of an emoji arrive one by one: nothing is shown until the fourth, and a broken one reads as U+FFFD."""
    answer = Answer(ByteTokenizer(), TaskConfig())
    assert [answer.add(byte) for byte in "🙂".encode()] == ["", "", "", "🙂"]
    broken = Answer(ByteTokenizer(), TaskConfig())
    assert [broken.add(byte) for byte in "🙂".encode()[:2]] == ["", ""] and broken.close() == "\ufffd"


def test_the_command(run: Run, config: Build, tmp_path: Path) -> None:
    built = config(**{"training.steps": 2, "eval.every": 2}, runs_dir=str(tmp_path / "work" / "runs"))
    train(built)
    done = run("sample.py", "prompt=alpha beta", "max_new_tokens=5", "temperature=0")
    assert done.returncode == 0 and done.stdout.startswith("alpha beta")
    done = run("sample.py", "runs_dir=empty")
    assert (done.returncode, done.stderr) == (
        2,
        "error: run=null: no run under empty; train one first: python train.py\n",
    )
