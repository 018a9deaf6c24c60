"""Signals that ask a run to stop. A signal only sets a flag; the loop looks at it between steps."""

import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """While inside, SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGUSR2 set the flag instead of ending the process."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether somebody asked to stop."""
        return self.reason is not None

    def receive(self, number: int, _: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    def __enter__(self) -> "StopFlag":
        self.before = {number: signal.signal(number, self.receive) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
