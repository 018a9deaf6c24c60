"""Locks: one owner, gone with the process, also on file systems that have none. Small files, whole or as before."""

import errno
import fcntl
import os
import signal
import threading
import time
from pathlib import Path
from typing import IO

import pytest

from nanogpt import files
from nanogpt.files import from_json, hold_lock, write_atomic


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system like NFS without its lock daemon, and a quick heart."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files, "HEARTBEAT", 0.4)


def test_f25_an_owner_file_where_there_are_no_locks(tmp_path: Path, no_locks: None) -> None:
    with hold_lock(tmp_path / ".lock", wait=False) as first:
        assert first
        with hold_lock(tmp_path / ".lock", wait=False) as second:
            assert not second
        for _ in range(3):
            before = (tmp_path / ".lock.owner").read_text()
            while (tmp_path / ".lock.owner").read_text() == before:
                time.sleep(0.01)
        with hold_lock(tmp_path / ".lock", wait=False) as third:
            assert not third, "a living owner is not robbed however long it takes"
    assert not (tmp_path / ".lock.owner").exists()
    with hold_lock(tmp_path / ".lock", wait=False) as mine:
        assert mine


def test_f25_a_dead_owner_is_replaced(tmp_path: Path, no_locks: None) -> None:
    """Its process was killed: the file stays, and no longer changes."""
    child = os.fork()
    if child == 0:
        with hold_lock(tmp_path / ".lock", wait=False):
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / ".lock.owner").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / ".lock.owner").exists()
    with hold_lock(tmp_path / ".lock", wait=False) as mine:
        assert mine


def test_waiting_for_an_owner_file(tmp_path: Path, no_locks: None) -> None:
    order: list[str] = []

    def second() -> None:
        with hold_lock(tmp_path / ".lock", wait=True) as mine:
            order.append(f"second {mine}")

    with hold_lock(tmp_path / ".lock", wait=False):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.3)
        order.append("first")
    waiting.join()
    assert order == ["first", "second True"]


def test_a_file_that_can_t_be_replaced_leaves_no_rest(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "there", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_json_that_is_too_deep_is_an_ordinary_error() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json("[" * 200_000)
    assert from_json(b"[1]") == [1]


def test_a_lock_file_that_was_deleted_meanwhile_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waited for a file which its owner then deleted must not hold a lock that nobody else sees."""
    path, taken = tmp_path / ".lock", fcntl.flock

    def delete_first(file: IO[str], how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", taken)
        path.unlink()
        taken(file, how)

    monkeypatch.setattr(fcntl, "flock", delete_first)
    with hold_lock(path, wait=False) as first, hold_lock(path, wait=False) as second:
        assert first and not second


def test_a_dead_owner_is_replaced_by_one_process_only(tmp_path: Path) -> None:
    """Another process has taken the lock between the decision and the removal."""
    path = tmp_path / "owner"
    path.write_text("alive")
    files.remove_dead_owner(path, "dead")
    assert path.read_text() == "alive" and list(tmp_path.iterdir()) == [path]
    files.remove_dead_owner(path, "alive")
    assert list(tmp_path.iterdir()) == []


def test_what_was_deleted_between_two_looks_is_not_there(tmp_path: Path) -> None:
    assert files.list_entries(tmp_path / "none") == [] and files.mtime(tmp_path / "none") == 0.0
