"""Signals that ask a run to stop. A signal only sets a flag; the ranks agree on it between steps."""

import signal
import socket
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
SAME_SIGNAL_SECONDS = 0.1  # signals this close together count as one: a job may send the same one several times


class Stop(IntEnum):
    """Stop request of a rank at a step boundary. All ranks act on the highest."""

    NO = 0
    SAVE_AND_STOP = 1
    """First signal: save and end at this step boundary."""
    STOP_WITHOUT_SAVING = 2
    """Second signal: end at this step boundary without saving."""
    SAVE_FAILED = 3
    """Rank 0 has failed to save checkpoints and gives up."""


@contextmanager
def restore_handlers(numbers: Iterable[signal.Signals]) -> Generator[dict[signal.Signals, Any], None, None]:
    """Yield the current handlers of these signals, and restore them on exit."""
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopFlag:
    """Context in which SIGINT (Ctrl-C), SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP set a flag and don't end the process.

    SIGHUP stays ignored if it was (nohup). The socket `wakeup` receives a byte as soon as a signal arrives, also while
    the main thread is inside a call that never returns to Python.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.level = Stop.NO
        self.first_at = 0.0
        self.previous_handlers: dict[signal.Signals, Any] = {}
        self.wakeup, self.waker = socket.socketpair()

    def handle_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.reason is None:
            self.reason, self.level, self.first_at = signal.Signals(number).name, Stop.SAVE_AND_STOP, now
        elif now - self.first_at > SAME_SIGNAL_SECONDS:
            self.level = Stop.STOP_WITHOUT_SAVING
        before = self.previous_handlers.get(signal.Signals(number))
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)  # a sweep in this process has a handler too

    def __enter__(self) -> "StopFlag":
        self.waker.setblocking(False)
        self.wakeup_before = signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self.previous_handlers[number] = signal.signal(number, self.handle_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.wakeup_before)
        self.wakeup.close()
        self.waker.close()
