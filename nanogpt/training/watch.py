"""A thread that ends this rank when nothing else can: the main thread hangs in a collective, or ignores a signal.

It counts its own ticks instead of reading a clock, so a job that is suspended as a whole, or a laptop that sleeps,
loses nothing.
"""

import faulthandler
import os
import select
import threading
import time
from pathlib import Path
from types import TracebackType

from nanogpt.errors import STOPPED, PeerLost
from nanogpt.training.stop import StopFlag

TICK = 0.25
FIRST = 5.0  # times the patience before the first step is done: compiling, warming up


class Watch:
    """Watches from `with` to its end; the main thread calls `beat` whenever it has got somewhere."""

    def __init__(self, flag: StopFlag, folder: Path, rank: int, world: int, patience: float, grace: float) -> None:
        self.flag, self.file = flag, folder / f"stacks-rank-{rank}.txt"
        self.rank, self.patience, self.grace = rank, patience if world > 1 else float("inf"), grace
        self.silent = self.stopping = 0.0
        """Seconds since the last beat, and since the first signal."""
        self.factor, self.step = FIRST, -1
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, name="watch", daemon=True)

    def beat(self, step: int) -> None:
        """The main thread lives and is at `step`."""
        if -1 < self.step < step:
            self.factor = 1.0
        self.silent, self.step = 0.0, step

    def run(self) -> None:
        signalled = False
        while not self.over.is_set():
            started = time.monotonic()
            ready, _, _ = select.select([] if signalled else [self.flag.wakeup], [], [], TICK)
            signalled = signalled or bool(ready)
            if ready:
                continue
            passed = min(TICK, time.monotonic() - started)
            self.silent += passed
            self.stopping += passed if signalled else 0.0
            if self.silent > self.patience * self.factor:
                what = f"rank {self.rank} got nowhere for {self.silent:.0f} s at step {self.step}: another rank hangs"
                self.give_up(f"{what} or is lost", PeerLost.exit_code)
            if self.stopping > self.grace:
                what = f"{self.flag.reason or 'a signal'} was {self.stopping:.0f} s ago and step {self.step} isn't over"
                self.give_up(what, STOPPED)

    def give_up(self, what: str, code: int) -> None:
        """Leave every thread's stack in the run directory and end this process at once."""
        if self.over.is_set():
            return
        try:
            with self.file.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {what}\n")
                faulthandler.dump_traceback(file)
        except OSError:
            pass
        text = f"error: {what}; the same command continues from the last checkpoint; see {self.file}\n"
        os.write(2, text.encode())  # sys.stderr may be in the hands of the thread that hangs
        os._exit(code)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.over.set()
        self.thread.join()
