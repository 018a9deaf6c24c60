"""Links that somebody put where a run's own files belong: what they lead to stays as it was."""

import shutil
from pathlib import Path

import pytest

from tests.security.hostile import Person

FILES = ["log.txt", "metrics.jsonl", "timing.jsonl", "status.json", "provenance.json", "tokenizer.json", ".lock"]
FILES += [".status.json.tmp", ".metrics.jsonl.tmp", ".provenance.json.tmp"]
PICTURES = ["plots/.loss.png.tmp", "plots/loss.png"]
FOLDERS = [f"checkpoints/{name}step-0000000{step}" for name in (".tmp-", ".old-", ".del-", "") for step in (1, 2, 4)]


@pytest.fixture
def paused(person: Person, words: list[str]) -> Path:
    """A run in the middle."""
    shutil.rmtree("runs")
    assert person.give("train.py", *longer(words), "stop_at_fraction=0.5").code == 0
    (path,) = Path("runs").iterdir()
    return path


def longer(words: list[str]) -> list[str]:
    return [*(word for word in words if not word.startswith("training.steps=")), "training.steps=4"]


def precious(person: Person) -> tuple[Path, Path]:
    """A file and a folder that are nobody's business."""
    folder = person.folder.parent / "precious"
    folder.mkdir()
    for name in ("file", "model.safetensors", "config.yaml"):
        (folder / name).write_text("precious\n")
    return folder, folder / "file"


def untouched(folder: Path) -> bool:
    return {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
        ("file", "model.safetensors", "config.yaml"), "precious\n"
    )


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, person: Person, paused: Path, words: list[str]) -> None:
    check_file(name, person, paused, words)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str, person: Person, paused: Path, words: list[str], pictures: None) -> None:
    check_file(name, person, paused, words)


def check_file(name: str, person: Person, paused: Path, words: list[str]) -> None:
    """Training goes on, or ends in one line."""
    folder, file = precious(person)
    (paused / name).unlink(missing_ok=True)
    (paused / name).symlink_to(file)
    done = person.give("train.py", *longer(words))
    assert untouched(folder)
    assert done.code in (0, 3, 4, 5) and done.err.count("\n") <= 1, done


def test_folders_of_checkpoints(person: Person, paused: Path, words: list[str]) -> None:
    folder, _ = precious(person)
    for name in FOLDERS:
        shutil.rmtree(paused / name, ignore_errors=True)
        (paused / name).symlink_to(folder)
    assert person.refused("train.py", *longer(words)) == 4
    assert person.give("-m", "experiments", "gc", "delete=true", f"what=[{','.join(KINDS)}]").code == 0
    assert untouched(folder)


KINDS = ("leftovers", "checkpoints", "code", "damaged", "attempts", "empty")


def test_a_run_directory(person: Person, paused: Path, words: list[str]) -> None:
    """A link to something else is refused; one to the run, moved to another disk, is the run."""
    folder, _ = precious(person)
    elsewhere = person.folder.parent / "elsewhere"
    paused.rename(elsewhere)
    paused.symlink_to(folder)
    assert person.refused("train.py", *longer(words)) == 4
    assert person.give("-m", "experiments", "gc", "delete=true", f"what=[{','.join(KINDS)}]").code in (0, 2)
    assert untouched(folder)
    paused.unlink()
    paused.symlink_to(elsewhere)
    assert person.give("train.py", *longer(words)).code == 0
    assert (elsewhere / "checkpoints" / "step-00000004").is_dir()


@pytest.mark.parametrize("name", ["out", ".out.partial"])
def test_an_export(name: str, person: Person, run: Path) -> None:
    """A link in the place is refused; the folder that is written first has a name that nobody can know."""
    folder, _ = precious(person)
    Path(name).symlink_to(folder)
    ended = person.give("-m", "cli", "export", "out=out", "overwrite=true").code
    assert ended in (2, 5) if name == "out" else ended == 0
    assert untouched(folder)
