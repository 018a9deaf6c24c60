"""The states of a run or a sweep point, and a check that a process is alive."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

Written = Literal["running", "finished", "paused", "stopped", "diverged", "failed"]
"""States that a run writes to its status.json."""
State = Literal[
    "running", "queued", "unknown", "failed", "diverged", "lost", "cancelled", "stopped", "new", "paused", "finished"
]
"""State of a run or a sweep point, in the order of `nanogpt watch`:

- running, queued; unknown: Slurm does not answer
- failed: ended in an error; diverged: the loss was not finite
- lost: ended without recording why; cancelled: by `nanogpt cancel`
- stopped: saved and ended after a signal; new: not started
- paused: reached training.stop_at_fraction; finished: reached its last step
"""

WRITTEN: tuple[Written, ...] = get_args(Written)
STATES: tuple[State, ...] = get_args(State)
IN_PROGRESS: tuple[State, ...] = ("queued", "running", "unknown")
"""Not ended, as far as is known."""
FAILED: tuple[State, ...] = ("failed", "diverged")
"""Ended in an error that would occur again: submitted again only on request."""
NEEDS_ATTENTION: tuple[State, ...] = (*FAILED, "lost", "cancelled")
"""Ended before its goal, for a reason that a person should see."""
RESUBMITTED: tuple[State, ...] = ("new", "paused", "cancelled", "lost")
"""Submitted by the same command."""
REACHED_GOAL: tuple[State, ...] = ("finished", "paused")
"""Reached its last step, or stop_at_fraction."""


def count_states(states: Iterable[str]) -> str:
    """Return e.g. `9 finished, 3 running`."""
    return ", ".join(f"{count} {state}" for state, count in sorted(Counter(states).items()))


def is_alive(pid: object, started: object = None) -> bool:
    """Return whether a process of this machine runs. One that ended and wasn't waited for (a zombie) doesn't.

    `started` is what `read_start_time` said of it, where that is known: another process may have the number by now.
    """
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's, whose /proc may be hidden
        if read_stat(pid) is None:
            return True
    fields = read_stat(pid)
    if fields is None:
        return not Path("/proc/self").exists()  # a system without /proc: the process answered
    return fields[0] not in "ZX" and (not isinstance(started, int) or started == int(fields[19]))


def read_start_time(pid: int) -> int | None:
    """Return when a process started, in ticks since the machine did, or None where that can't be read."""
    fields = read_stat(pid)
    return int(fields[19]) if fields else None


def read_process_strings(pid: int, name: Literal["cmdline", "environ"]) -> list[bytes]:
    """Return the strings in /proc/PID/cmdline or environ; [] if the process is gone, a zombie or another user's."""
    try:
        return [text for text in Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0") if text]
    except OSError:
        return []


def read_stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the name, or None if the process is gone or there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
