"""The command that starts its ranks: one exit code for all of them."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nanogpt.distributed import spawn
from nanogpt.distributed.spawn import combine_exit_codes, remove_stale_folders, wait_for_ranks

CASES = [
    ({0: 0, 1: 0}, [], 0),
    ({1: 85, 0: 85}, [signal.SIGTERM], 85),
    ({1: 85, 0: 0}, [], 85),
    ({1: 3, 0: 7}, [], 3),  # rank 1 had the error, rank 0 lost it
    ({0: 7, 1: 3}, [], 3),
    ({0: 6, 1: 6}, [], 6),
    ({1: -signal.SIGKILL, 0: 7}, [], 7),
    ({1: 7, 0: -signal.SIGSEGV}, [], 7),
    ({0: -signal.SIGTERM, 1: -signal.SIGTERM}, [signal.SIGTERM], 128 + signal.SIGTERM),
    ({0: 1, 1: 7}, [], 1),
]


@pytest.mark.parametrize(("codes", "signals", "expected"), CASES)
def test_verdict(codes: dict[int, int], signals: list[int], expected: int, capsys: pytest.CaptureFixture[str]) -> None:
    """`codes` in the order the ranks ended."""
    assert combine_exit_codes(codes, signals) == expected
    if -signal.SIGKILL in codes.values():
        assert "error: rank 1 was killed by SIGKILL; perhaps by the system" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 85, 3])
def test_a_rank_that_never_ends_is_ended(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, or in a call it never leaves: some time after the others it is killed, and not blamed on the memory."""
    monkeypatch.setattr(spawn, "STRAGGLER_SECONDS", 0.3)
    done = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"], text=True)
    stuck = subprocess.Popen(["sleep", "60"], text=True)
    os.kill(stuck.pid, signal.SIGSTOP)
    assert wait_for_ranks([stuck, done], stop_timeout=0.1) == {1: code, 0: 7}


def test_folders_of_commands_that_were_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pid in (gone.pid, os.getpid()):
        (tmp_path / f"nanogpt-{pid}-x").mkdir()
    (tmp_path / "nanogpt-mine").mkdir()
    remove_stale_folders()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"nanogpt-{os.getpid()}-x", "nanogpt-mine"])
