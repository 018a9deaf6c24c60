"""A run whose texts have characters of several bytes, and a server of it."""

from collections.abc import Generator

import pytest

import nanogpt
from nanogpt.training.run import train
from tests.serving.server import Server, serving
from tests.tiny_config import tiny_config


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> nanogpt.Run:
    """A model of bytes."""
    folder = tmp_path_factory.mktemp("serving")
    (folder / "corpus.txt").write_text("".join(f"größe 🙂 — {i * i % 7} ✓\n" for i in range(900)))
    built = {"data.tokenizer": "byte", "model.block_size": 64, "model.n_embd": 32, "model.dropout": 0.0}
    built |= {"training.steps": 100, "training.batch_tokens": 1024, "eval.every": 100, "checkpoint.every": 100}
    config = tiny_config(folder, folder / "corpus.txt", **built)
    assert train(config) == 0
    return nanogpt.load(runs_dir=config.runs_dir, device="cpu")


@pytest.fixture(scope="session")
def server(run: nanogpt.Run) -> Generator[Server, None, None]:
    """A server of the run with limits that tests reach."""
    with serving(f"run={run.path}", "max_tokens=200", "max_choices=6", "max_body_bytes=4000") as started:
        yield started
