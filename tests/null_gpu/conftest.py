"""A way to train on the null GPU, and nothing where there is none."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.null_gpu.counters import on_null_gpu
from tests.tiny_config import write_corpus

ROOT = Path(__file__).parents[2]
Train = Callable[..., subprocess.CompletedProcess[str]]
H100, RTX_4090 = {"NULL_GPU_NAME": "NVIDIA H100 80GB HBM3"}, {"NULL_GPU_NAME": "NVIDIA GeForce RTX 4090"}
REAL = ["hardware.attention=flash", "tracking.sample_tokens=0"]  # cuDNN and torch.multinomial do not run here


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not on_null_gpu():
        for item in items:
            if item.get_closest_marker("null_gpu") and not item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="runs under tests/null_gpu/run"))


@pytest.fixture(scope="session")
def data_words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Name one small text, prepared once."""
    folder = tmp_path_factory.mktemp("data")
    source = write_corpus(folder / "corpus.txt")
    return ["data=text", f"data.source={source}", "data.tokenizer=char", f"data.dir={folder}"]


@pytest.fixture
def train(tmp_path: Path, data_words: list[str]) -> Train:
    """Run train.py on the small text to its end: `train("model=tiny", NULL_GPU_COUNT="2")`."""

    def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "train.py"), *data_words, f"runs_dir={tmp_path}", *REAL, *words]
        there = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
        return subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True)

    return call
