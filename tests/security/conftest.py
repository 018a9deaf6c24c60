"""A trained run to copy and spoil."""

import shutil
from pathlib import Path

import pytest

from nanogpt.training.run import train
from tests.security.hostile import Person
from tests.tiny import tiny_config, write_corpus


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `corpus.txt`, `data` and one finished run in `runs/`, all paths in its config relative."""
    folder = tmp_path_factory.mktemp("trained")
    write_corpus(folder / "corpus.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        short = {"training.steps": 2, "eval.every": 2, "checkpoint.every": 1, "eval.tokens": 64}
        assert train(tiny_config(Path(), Path("corpus.txt"), **short)) == 0
    return folder


@pytest.fixture
def person(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Person:
    """Somebody in a copy of that folder."""
    shutil.copytree(trained, tmp_path / "work", symlinks=True)
    return Person(tmp_path / "work", monkeypatch, capsys)


@pytest.fixture
def run(person: Person) -> Path:
    """The run in there."""
    (path,) = Path("runs").iterdir()
    return path
