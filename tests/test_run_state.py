"""Whether a process runs: one that ended and wasn't waited for doesn't, nor one whose number another has by now."""

import os
from pathlib import Path

from launch.status import read_own_state
from nanogpt.run_directory import RunDirectory
from nanogpt.run_state import (
    FAILED,
    IN_PROGRESS,
    NEEDS_ATTENTION,
    RESUBMITTED,
    STATES,
    WRITTEN,
    is_alive,
    read_start_time,
)


def test_a_zombie_is_dead_for_the_list_of_runs_too(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        RunDirectory(tmp_path).write_status("running")
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it ended, and is a zombie until it is waited for
    assert not is_alive(child)
    run = RunDirectory(tmp_path)
    assert read_own_state(tmp_path, run.read_status()) == ("lost", "its process is gone; the same command continues")
    os.waitpid(child, 0)
    assert not is_alive(child)


def test_a_number_that_another_process_has_is_not_that_process(tmp_path: Path) -> None:
    started = read_start_time(os.getpid())
    assert started is not None
    assert is_alive(os.getpid()) and is_alive(os.getpid(), started) and not is_alive(os.getpid(), started - 1)
    run = RunDirectory(tmp_path)
    run.write_status("running")
    assert run.read_status()["pid_start"] == started
    assert read_own_state(tmp_path, run.read_status())[0] == "running"
    assert read_own_state(tmp_path, run.read_status() | {"pid_start": started - 1})[0] == "lost"
    old = {
        key: value for key, value in run.read_status().items() if key != "pid_start"
    }  # written before it was recorded
    assert read_own_state(tmp_path, old)[0] == "running"


def test_what_is_no_process() -> None:
    for pid in (None, True, "1", 0, -1, 2**40, 1.5):
        assert not is_alive(pid)


def test_the_lists_are_of_known_words() -> None:
    for some in (WRITTEN, IN_PROGRESS, FAILED, NEEDS_ATTENTION, RESUBMITTED):
        assert set(some) <= set(STATES)
    assert not set(IN_PROGRESS) & {*NEEDS_ATTENTION, *RESUBMITTED, "finished"}
