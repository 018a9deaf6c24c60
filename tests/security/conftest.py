"""A trained run to copy and spoil, a Slurm that only takes notes, and a folder of YAML files to write to."""

import os
import shutil
from pathlib import Path

import pytest

from cli.quoting import format_override
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.training.run import train
from tests.security.hostile import Person
from tests.tiny_config import tiny_config, write_corpus

SHORT = {"training.steps": 2, "eval.every": 2, "checkpoint.every": 1, "eval.tokens": 64}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `corpus.txt`, `data` and one finished run in `runs/`, all paths in its config relative."""
    folder = tmp_path_factory.mktemp("trained")
    write_corpus(folder / "corpus.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train(tiny_config(Path(), Path("corpus.txt"), **SHORT)) == 0
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


@pytest.fixture
def words() -> list[str]:
    """What trains it, on a command line."""
    values = dict(schema.iter_values(tiny_config(Path(), Path("corpus.txt"), **SHORT)))
    usual = dict(schema.iter_values(TrainConfig(training={"steps": 1})))  # type: ignore[arg-type]
    del values["runs_dir"]
    presets = ("schedule.warmup_steps", "hardware.device")  # which files set to something else than the default
    return [format_override(key, value) for key, value in values.items() if value != usual[key] or key in presets]


SBATCH = """#!/bin/sh
for script; do :; done
cp "$script" "$NOTES/script.sh"
env > "$NOTES/environment.txt"
printf '%s\\n' "$@" > "$NOTES/sbatch.txt"
echo Submitted batch job 123
"""
SRUN = """#!/bin/sh
printf '%s\\n' "$@" > "$NOTES/srun.txt"
"""


@pytest.fixture
def slurm(person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where sbatch and srun note what they are given, and start nothing."""
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir()
    notes.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "squeue": "#!/bin/sh\n", "scontrol": "#!/bin/sh\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(notes))
    return notes
