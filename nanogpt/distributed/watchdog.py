"""A thread that ends this rank if a peer is lost, a collective hangs, or the rank does not react to a signal.

It counts its own ticks and reads no clock, so time during which the job is suspended or the laptop sleeps does not
count. While torch compiles, which can take minutes, it sends heartbeats in place of the main thread.
"""

import faulthandler
import os
import select
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

import torch

from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.distributed.signals import StopFlag
from nanogpt.errors import STOPPED, PeerLost

TICK = 0.25
FIRST_STEP_FACTOR = 5.0  # multiplies the timeout until the first step is done, which includes warm-up
HEARTBEAT_SECONDS = 2.0  # without a heartbeat before a dead peer counts as lost: it may have ended in order


class Watchdog:
    """Context with a thread that watches for lost peers, and after `start` for hangs and ignored signals too."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self.since_own_heartbeat = self.since_any_progress = self.since_signal = 0.0
        """Seconds since this rank's last heartbeat, since any rank's, and since the first signal."""
        self.own_progress = self.others_progress = 0
        self.compilations = 0
        """Compilations in progress in this process."""
        self.hears_compilations = False
        """True from `start` to `stop` while torch's compile callbacks are registered."""
        self.timeout = self.stop_timeout = float("inf")
        self.timeout_factor, self.step = FIRST_STEP_FACTOR, -1
        self.flag: StopFlag | None = None
        self.file: Path | None = None
        self.stopped = Event()
        self.thread = Thread(target=self.run, name="watch", daemon=True)

    def start(self, flag: StopFlag, folder: Path, timeout: float, stop_timeout: float, compiles: bool = False) -> None:
        """Begin to expect heartbeats of the main thread. On a hang all stacks are written to `folder`.

        With `compiles` the time that torch spends compiling does not count.
        """
        self.file = folder / f"stacks-rank-{self.group.rank}.txt"
        self.timeout = timeout if self.group.world > 1 else float("inf")
        self.stop_timeout, self.flag = stop_timeout, flag
        self.since_own_heartbeat = self.since_any_progress = 0.0
        if compiles:
            from torch._dynamo.callback import callback_handler  # takes seconds to import

            callback_handler.register_start_callback(self.count_compile_start)
            callback_handler.register_end_callback(self.count_compile_end)
            self.hears_compilations = True

    def count_compile_start(self, _: object) -> None:
        """Count a compilation that begins, in any thread."""
        self.compilations += 1

    def count_compile_end(self, _: object) -> None:
        """Count a compilation that ends."""
        self.compilations -= 1

    def stop(self) -> None:
        """End the thread: the ranks no longer need each other and end one by one."""
        self.stopped.set()
        if self.flag is not None and self.thread.is_alive():
            self.flag.waker.send(b"\0")  # wakes the thread before its tick
        self.thread.join()
        if self.hears_compilations:
            from torch._dynamo.callback import callback_handler

            callback_handler.remove_start_callback(self.count_compile_start)
            callback_handler.remove_end_callback(self.count_compile_end)
            self.hears_compilations = False

    def heartbeat(self, step: int) -> None:
        """Record that the main thread runs and is at `step`."""
        if -1 < self.step < step:
            self.timeout_factor = 1.0
        self.since_own_heartbeat, self.since_any_progress, self.step = 0.0, 0.0, step
        self.own_progress += 1

    def run(self) -> None:
        signalled, since_look = False, 0.0
        while not self.stopped.is_set():
            started = time.monotonic()
            waiting = [] if signalled or self.flag is None else [self.flag.wakeup]
            if select.select(waiting, [], [], TICK)[0]:
                signalled = True
                continue
            passed = min(TICK, time.monotonic() - started)
            self.since_own_heartbeat += passed
            self.since_any_progress += passed
            self.since_signal += passed if signalled else 0.0
            since_look += passed
            if since_look > min(1.0, self.timeout / 10):
                since_look = 0.0
                self.check_peers()
            self.check_timeouts()

    def check_peers(self) -> None:
        """Exchange progress with the other ranks. End if a local rank is dead and this one is stuck."""
        if self.compilations:
            self.own_progress += 1
            self.since_any_progress = 0.0
        theirs = self.group.exchange_progress(self.own_progress)
        if theirs != self.others_progress:
            self.others_progress, self.since_any_progress = theirs, 0.0
        if self.since_own_heartbeat < HEARTBEAT_SECONDS:
            return
        if gone := self.group.dead_local_ranks():
            self.abort(self.group.peer_lost_error(gone, max(0, self.step)).args[0], PeerLost.exit_code)

    def check_timeouts(self) -> None:
        """End if there was no heartbeat, or no reaction to a signal, for too long."""
        at = f"at step {max(0, self.step)}"
        again = "the same command continues from the last checkpoint"
        if self.since_any_progress > self.timeout * self.timeout_factor and not self.compilations:
            waited = f"no rank got anywhere for {self.since_any_progress:.0f} s {at}"
            what = f"{waited}: one hangs or is lost, or a batch takes so long"
            self.abort(f"{what}; {again}", PeerLost.exit_code)
        if self.since_signal > self.stop_timeout:
            reason = (self.flag and self.flag.reason) or "a signal"
            self.abort(f"{reason} was {self.since_signal:.0f} s ago and it isn't over {at}; {again}", STOPPED)

    def abort(self, what: str, code: int) -> None:
        """Write the stacks of all threads to the run directory and end this process at once."""
        if self.stopped.is_set():
            return
        where = ""
        if self.file is not None:
            where = f"; see {self.file}"
            try:
                with self.file.open("a") as file:
                    file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {what}\n")
                    faulthandler.dump_traceback(file)
            except OSError:
                where = ""
        mine = "" if self.group.is_rank0 else f"rank {self.group.rank}: "
        os.write(2, f"{mine}error: {what}{where}\n".encode())  # the thread that hangs may hold the lock of sys.stderr
        os._exit(code)

    def __enter__(self) -> "Watchdog":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.flag = None
        self.stop()


@contextmanager
def join_with_watchdog(group: ProcessGroup, device: torch.device, timeout: float) -> Generator[Watchdog, None, None]:
    """Join the process group under a watchdog, and leave it on exit unless there was an error. Raises PeerLost."""
    with Watchdog(group) as watch:
        watch.timeout = timeout
        group.join(device)
        watch.timeout = float("inf")  # lost ranks are still found; a slow one may prepare data for hours
        yield watch
    group.close()
