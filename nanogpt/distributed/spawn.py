"""Start the ranks of `devices=N` without torchrun, forward signals to them and wait for their exit codes.

The ranks meet through a file, so no port can be taken. They are killed if this process ends.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from nanogpt.distributed.env import STORE_VARIABLE
from nanogpt.distributed.signals import SIGNALS, restore_handlers
from nanogpt.entry_names import parse_number
from nanogpt.errors import STOPPED, PeerLost
from nanogpt.files import hold_lock
from nanogpt.json_output import ReservedStdout
from nanogpt.run_state import is_alive

POLL, STRAGGLER_SECONDS = 0.05, 15.0  # seconds between polls; seconds that the other ranks have to end
PR_SET_PDEATHSIG = 1
LOCK = "lock"  # held in the ranks' folder while they run
Rank = subprocess.Popen[str]


def run_ranks(command: list[str], message: str, world: int, stop_timeout: float = 0.0) -> int:
    """Run `command` as each of `world` ranks, with `message` on its standard input.

    After a rank has ended in order, the others have `stop_timeout` + STRAGGLER_SECONDS to end, after an error only the
    latter. Returns the exit code of the first failure.
    """
    remove_stale_folders()
    with tempfile.TemporaryDirectory(prefix=f"nanogpt-{os.getpid()}-") as folder:
        ranks: list[Rank] = []
        with hold_lock(Path(folder) / LOCK, wait=True), forward_signals(ranks) as signals:
            for rank in range(world):
                ranks.append(start_rank(command, rank, world, Path(folder), message))
            codes = wait_for_ranks(ranks, stop_timeout)
    return combine_exit_codes(codes, signals)


def start_rank(command: list[str], rank: int, world: int, folder: Path, message: str) -> Rank:
    """Start one rank in a new session, so that Ctrl-C reaches it only once, forwarded by this process."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    environment = {name: str(value) for name, value in places.items()}
    environment[STORE_VARIABLE] = str(folder / "store")
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=ReservedStdout.stream,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended already, and its exit code says why
        process.stdin.write(message)
        process.stdin.close()
    return process


@contextmanager
def forward_signals(ranks: list[Rank]) -> Generator[list[int], None, None]:
    """Forward signals to all ranks while inside. Yields a list that collects them."""
    came: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        came.append(number)
        for rank in ranks:
            rank.send_signal(number)

    with restore_handlers(SIGNALS) as before:
        for number, handler in before.items():
            if number != signal.SIGHUP or handler != signal.SIG_IGN:
                signal.signal(number, pass_on)
        yield came


def wait_for_ranks(ranks: list[Rank], stop_timeout: float) -> dict[int, int]:
    """Wait for all ranks, killing the last ones if they take too long. Returns {rank: exit code} by time of end."""
    codes: dict[int, int] = {}
    limit, overdue = float("inf"), False
    while len(codes) < len(ranks):
        for rank, process in enumerate(ranks):
            code = process.poll()
            if code is not None and rank not in codes:
                codes[rank] = PeerLost.exit_code if overdue and code < 0 else code  # killed below
                patience = STRAGGLER_SECONDS + (stop_timeout if code in (0, STOPPED) else 0.0)
                limit = min(limit, time.monotonic() + patience)
        if time.monotonic() > limit:
            overdue = True
            for process in ranks:
                process.kill()
        time.sleep(POLL)
    return codes


def combine_exit_codes(codes: dict[int, int], signals: list[int]) -> int:
    """Return the first exit code of an error that is not the loss of another rank. Prints a line for a killed rank."""
    own = [code for code in codes.values() if code > 0 and code not in (PeerLost.exit_code, STOPPED)]
    if own:
        return own[0]
    killed = [(rank, -code) for rank, code in codes.items() if code < 0]
    if killed and killed[0][1] in signals:  # by a forwarded signal, before it could handle signals
        return 128 + killed[0][1]
    if killed:
        rank, number = killed[0]
        perhaps = "; perhaps by the system, out of memory" if number == signal.SIGKILL else ""
        print(f"error: rank {rank} was killed by {signal.Signals(number).name}{perhaps}", file=sys.stderr)
        return PeerLost.exit_code
    return max(codes.values())


def remove_stale_folders() -> None:
    """Remove the folders of commands that were killed."""
    for folder in Path(tempfile.gettempdir()).glob("nanogpt-*-*"):
        pid = folder.name.split("-")[1]
        if not parse_number(pid) or is_alive(int(pid)):
            continue
        with suppress(OSError), hold_lock(folder / LOCK, wait=False) as ours:
            if ours:  # else the process runs in another container that shares this folder
                shutil.rmtree(folder, ignore_errors=True)


def die_with_parent() -> None:
    """Have Linux kill this process when its parent ends."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
