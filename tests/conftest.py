"""Small data, small models, and a way to run the commands as a person does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanogpt.config import TrainConfig
from nanogpt.schema import from_dict

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
Run = Callable[..., subprocess.CompletedProcess[str]]

torch.set_num_threads(2)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A text file of 12,000 characters with some structure to learn."""
    path = tmp_path / "corpus.txt"
    words = ("alpha", "beta", "gamma", "delta", "epsilon")
    path.write_text("".join(f"{words[i * i % 5]} {words[i * 7 % 5]} {i}\n" for i in range(900)))
    return path


@pytest.fixture
def shakespeare() -> Path:
    """Tiny Shakespeare, where the machine has it."""
    path = SHARED / "data" / "tinyshakespeare" / "input.txt"
    if not path.exists():
        pytest.skip("tiny Shakespeare is not on this machine")
    return path


@pytest.fixture
def gpt2_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's tokenizer files, where the machine has them."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
    if not Path(folder).is_dir():
        pytest.skip("GPT-2's tokenizer files are not on this machine")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", folder)


@pytest.fixture
def config(tmp_path: Path, corpus: Path) -> Callable[..., TrainConfig]:
    """Builds the config of a run of seconds: `config(**{"optimizer.lr": 1e-3})`."""

    def build(**changes: object) -> TrainConfig:
        values: dict[str, object] = {
            "runs_dir": str(tmp_path / "runs"),
            "model.name": "test",
            "model.n_layer": 2,
            "model.n_head": 2,
            "model.n_embd": 16,
            "model.block_size": 16,
            "model.dropout": 0.1,
            "data.name": "test",
            "data.corpus": "text",
            "data.source": str(corpus),
            "data.tokenizer": "char",
            "data.val_fraction": 0.1,
            "data.dir": str(tmp_path / "data"),
            "optimizer.lr": 1e-2,
            "training.batch_tokens": 128,
            "training.steps": 20,
            "eval.every": 5,
            "eval.tokens": 256,
            "hardware.device": "cpu",
            "tracking.log_every": 2,
            "tracking.sample_tokens": 8,
            "checkpoint.every": 4,
        }
        nested: dict[str, dict[str, object]] = {}
        for key, value in (values | changes).items():
            group, _, leaf = key.rpartition(".")
            if group:
                nested.setdefault(group, {})[leaf] = value
            else:
                nested[leaf] = value  # type: ignore[assignment]
        return from_dict(TrainConfig, nested)

    return build


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `python <door>.py words…` in an empty folder and returns what happened."""
    folder = tmp_path / "work"
    folder.mkdir()

    def call(door: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / door), *words]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=200, env=os.environ | environment
        )

    return call
