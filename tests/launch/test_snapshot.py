"""Frozen code: used again only if it is whole; damaged copies are made anew or refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import snapshot as snapshots
from launch.snapshot import is_whole, restore, snapshot
from nanogpt.errors import BadEnvironment
from nanogpt.provenance import GIT_STATE


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a small source tree in place of this one."""
    root = tmp_path / "root"
    for name in ("conf/train.yaml", "launch/job.py", "nanogpt/model/gpt.py", "nanogpt/.#gpt.py", "nanogpt/x.pyc"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    monkeypatch.setattr(snapshots, "ROOT", root)
    return root


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half of it gone": lambda place: shutil.rmtree(place / "launch"),
    "a file gone": lambda place: (place / "nanogpt/model/gpt.py").unlink(),
    "a file edited": lambda place: (place / "nanogpt/model/gpt.py").write_text("edited"),
    "a file cut": lambda place: (place / "conf/train.yaml").write_text(""),
    "a file added": lambda place: (place / "nanogpt/new.py").write_text(""),
    "no state of git": lambda place: (place / GIT_STATE).unlink(),
    "empty": lambda place: (shutil.rmtree(place), place.mkdir()),
    "a file in its place": lambda place: (shutil.rmtree(place), place.write_text("")),
    "gone": shutil.rmtree,
}


def test_it_is_a_copy_and_made_once(tree: Path, tmp_path: Path) -> None:
    place = snapshot(tmp_path / "code")
    copied = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    assert copied == ["conf/train.yaml", GIT_STATE, "launch/job.py", "nanogpt/model/gpt.py"]
    made = place.stat().st_ino
    assert snapshot(tmp_path / "code") == place and place.stat().st_ino == made
    (tree / "launch" / "job.py").write_text("changed")
    assert snapshot(tmp_path / "code") != place and is_whole(place)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_one_is_made_anew(how: str, tree: Path, tmp_path: Path) -> None:
    """Case 25, by a new submission and by `retry`."""
    place = snapshot(tmp_path / "code")
    for again in (lambda: snapshot(tmp_path / "code"), lambda: restore(place)):
        DAMAGE[how](place)
        assert not is_whole(place)
        assert again() == place and is_whole(place)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_one_of_other_code_is_refused(how: str, tree: Path, tmp_path: Path) -> None:
    place = snapshot(tmp_path / "code")
    (tree / "launch" / "job.py").write_text("changed")
    assert restore(place) == place
    DAMAGE[how](place)
    with pytest.raises(BadEnvironment, match="nanogpt resubmit"):
        restore(place)


def test_one_that_was_cut_short_is_not_there(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the rename; the next command doesn't take the rest for a snapshot."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(snapshots, "put_in_place", interrupt)
        snapshot(tmp_path / "code")
    assert all(path.name.startswith(".") for path in (tmp_path / "code").iterdir())
    assert is_whole(snapshot(tmp_path / "code"))


def interrupt(_: Path, __: Path) -> None:
    raise KeyboardInterrupt
