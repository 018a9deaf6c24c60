"""Small data, small models, and a way to run the commands as a person does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanogpt.config import TrainConfig
from tests import ranks
from tests.tiny import tiny_config, write_corpus

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
Run = Callable[..., subprocess.CompletedProcess[str]]

torch.set_num_threads(2)


@pytest.fixture(scope="session", autouse=True)
def compiled_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What torch.compile makes is of this session, not what is left of another's code."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A small text to train on."""
    return write_corpus(tmp_path / "corpus.txt")


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

    return lambda **changes: tiny_config(tmp_path, corpus, **changes)


@pytest.fixture
def undisturbed(config: Callable[..., TrainConfig], tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The result of `config(**changes)` on `world` ranks when nothing happens; the same run is made once a session."""

    def reference(world: int = 1, **changes: object) -> dict[str, str]:
        key = (world, *sorted((name, str(value)) for name, value in changes.items()))
        if key not in UNDISTURBED:
            same = config(**changes, runs_dir=str(tmp_path / f"undisturbed-{len(UNDISTURBED)}"))
            codes, output = ranks.run(same, world)
            assert codes == [0] * world, output
            UNDISTURBED[key] = ranks.result(same)
        return UNDISTURBED[key]

    return reference


UNDISTURBED: dict[tuple[object, ...], dict[str, str]] = {}


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
