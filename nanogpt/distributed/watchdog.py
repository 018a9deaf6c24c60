"""A thread that ends this rank when nothing else can: its peer is gone, it hangs in a collective, or ignores a signal.

It counts its own ticks instead of reading a clock, so a job that is suspended as a whole, or a laptop that sleeps,
loses nothing. While torch compiles, for minutes or longer, this thread beats in place of the main one.
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
FIRST = 5.0  # times the patience before the first step is done: warming up, connecting
AWHILE = 2.0  # seconds without a beat before a lost peer matters: the others may be at their end already


class Watch:
    """Watches from `with` to its end: from the start for lost peers, and once it is armed for hangs and signals too."""

    def __init__(self, peers: ProcessGroup) -> None:
        self.peers = peers
        self.silent = self.quiet = self.stopping = 0.0
        """Seconds since the last beat of this rank, since the last of any rank, and since the first signal."""
        self.beats = self.theirs = 0
        self.compiling = 0
        """Compilations under way in this process."""
        self.listens = False
        """True while torch tells this watch of compilations: until `end`, as a process may train several times."""
        self.patience = self.grace = float("inf")
        self.factor, self.step = FIRST, -1
        self.flag: StopFlag | None = None
        self.file: Path | None = None
        self.over = Event()
        self.thread = Thread(target=self.run, name="watch", daemon=True)

    def arm(self, flag: StopFlag, folder: Path, patience: float, grace: float, compiles: bool = False) -> None:
        """The loop begins: from now on the main thread beats, and `folder` takes the stacks of a hang. What `compiles`
        may take its time, at the first step or any other.
        """
        self.file = folder / f"stacks-rank-{self.peers.rank}.txt"
        self.patience = patience if self.peers.world > 1 else float("inf")
        self.grace, self.flag = grace, flag
        self.silent = self.quiet = 0.0
        if compiles:
            from torch._dynamo.callback import callback_handler  # seconds, which only those who compile pay

            callback_handler.register_start_callback(self.begin_compiling)
            callback_handler.register_end_callback(self.end_compiling)
            self.listens = True

    def begin_compiling(self, _: object) -> None:
        """Note that a compilation begins, in whichever thread."""
        self.compiling += 1

    def end_compiling(self, _: object) -> None:
        """Note that it is done."""
        self.compiling -= 1

    def end(self) -> None:
        """The ranks need each other no more, and leave one by one."""
        self.over.set()
        if self.flag is not None and self.thread.is_alive():
            self.flag.waker.send(b"\0")  # no need to wait for the tick
        self.thread.join()
        if self.listens:
            from torch._dynamo.callback import callback_handler

            callback_handler.remove_start_callback(self.begin_compiling)
            callback_handler.remove_end_callback(self.end_compiling)
            self.listens = False

    def beat(self, step: int) -> None:
        """The main thread lives and is at `step`."""
        if -1 < self.step < step:
            self.factor = 1.0
        self.silent, self.quiet, self.step = 0.0, 0.0, step
        self.beats += 1

    def run(self) -> None:
        signalled, since_look = False, 0.0
        while not self.over.is_set():
            started = time.monotonic()
            waiting = [] if signalled or self.flag is None else [self.flag.wakeup]
            if select.select(waiting, [], [], TICK)[0]:
                signalled = True
                continue
            passed = min(TICK, time.monotonic() - started)
            self.silent += passed
            self.quiet += passed
            self.stopping += passed if signalled else 0.0
            since_look += passed
            if since_look > min(1.0, self.patience / 10):
                since_look = 0.0
                self.look_for_peers()
            self.look_at_time()

    def look_for_peers(self) -> None:
        """See whether others get somewhere; end when one of this machine is gone and this one is stuck without it."""
        if self.compiling:
            self.beats += 1
            self.quiet = 0.0
        theirs = self.peers.progress(self.beats)
        if theirs != self.theirs:
            self.theirs, self.quiet = theirs, 0.0
        if self.silent < AWHILE:
            return
        if gone := self.peers.lost():
            self.give_up(self.peers.lost_error(gone, max(0, self.step)).args[0], PeerLost.exit_code)

    def look_at_time(self) -> None:
        """End when the main thread has been silent, or asked to stop, for too long."""
        at = f"at step {max(0, self.step)}"
        again = "the same command continues from the last checkpoint"
        if self.quiet > self.patience * self.factor and not self.compiling:
            what = f"no rank got anywhere for {self.quiet:.0f} s {at}: one hangs or is lost, or a batch takes so long"
            self.give_up(f"{what}; {again}", PeerLost.exit_code)
        if self.stopping > self.grace:
            reason = (self.flag and self.flag.reason) or "a signal"
            self.give_up(f"{reason} was {self.stopping:.0f} s ago and it isn't over {at}; {again}", STOPPED)

    def give_up(self, what: str, code: int) -> None:
        """Leave every thread's stack in the run directory and end this process at once."""
        if self.over.is_set():
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
        mine = "" if self.peers.leading else f"rank {self.peers.rank}: "
        os.write(2, f"{mine}error: {what}{where}\n".encode())  # sys.stderr may be in the hands of the thread that hangs
        os._exit(code)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.flag = None
        self.end()


@contextmanager
def watched(peers: ProcessGroup, device: torch.device, patience: float) -> Generator[Watch, None, None]:
    """Join the ranks, watch them while inside, and leave the group if all went well. Raises PeerLost."""
    with Watch(peers) as watch:
        watch.patience = patience
        peers.join(device)
        watch.patience = float("inf")  # a lost rank is seen; a slow one is waited for: it may prepare data for hours
        yield watch
    peers.close()
