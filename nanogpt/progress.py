"""Progress that a person watches: a live bar on a terminal, plain lines in a pipe or a job's log."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from nanogpt.console import is_visible, print_text
from nanogpt.formatting import format_count, format_duration

PLAIN_SECONDS = 10.0  # between the lines of TokenizeProgress without a terminal
logger = logging.getLogger(__name__)


class TrainProgress:
    """The progress bar of a training run on a terminal, else a log line for each logged step."""

    def __init__(self, first: int, total: int) -> None:
        self.total = total
        self.live: Progress | None = None
        if sys.stdout.isatty() and is_visible():
            self.live = Progress(
                TextColumn("step"), MofNCompleteColumn(), BarColumn(24), TextColumn("{task.fields[facts]}")
            )
            self.task = self.live.add_task("train", total=total, completed=first, facts="")
            self.live.start()

    def show(self, step: int, facts: dict[str, str]) -> None:
        """Move the bar to `step` and show these facts beside it, or log them as one line."""
        line = "  ".join(f"{name} {value}" for name, value in facts.items())
        if self.live is None:
            logger.info(f"step {step}/{self.total}  {line}")
        else:
            with suppress(OSError):  # the terminal is gone
                self.live.update(self.task, completed=step, facts=line)

    def close(self) -> None:
        if self.live is not None:
            with suppress(OSError):
                self.live.stop()
            self.live = None


class LiveText:
    """A text that is replaced in place on a terminal. Elsewhere only its notes are printed, one line each."""

    def __init__(self) -> None:
        self.live: Live | None = None
        if sys.stdout.isatty():
            self.live = Live(auto_refresh=False)
            self.live.start()

    def show(self, text: str) -> None:
        if self.live is not None:
            with suppress(OSError):
                self.live.update(Text(text), refresh=True)

    def note(self, text: str) -> None:
        """Print a line unless there is a terminal."""
        if self.live is None:
            print_text(text)

    def close(self) -> None:
        if self.live is not None:
            with suppress(OSError):
                self.live.update(Text(""), refresh=True)
                self.live.stop()
            self.live = None


class TokenizeProgress:
    """The progress of tokenizing on standard error: share of the text, tokens per second, time left."""

    def __init__(self, title: str, total_bytes: int | None, parts: int) -> None:
        self.title, self.total, self.parts = title, total_bytes, parts
        self.done_bytes = self.done_tokens = self.done_parts = 0
        self.started = self.shown = time.monotonic()
        self.live: Progress | None = None

    def __enter__(self) -> "TokenizeProgress":
        if sys.stderr.isatty() and is_visible():
            self.live = Progress(
                TextColumn(self.title),
                BarColumn(24),
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.live.add_task(self.title, total=self.total or self.parts, facts="")
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live is not None:
            self.show(force=True)
            self.live.stop()
        elif self.shown > self.started:
            self.show(force=True)

    def add(self, n_bytes: int, n_tokens: int) -> None:
        """Count one document."""
        self.done_bytes += n_bytes
        self.done_tokens += n_tokens
        self.show()

    def add_parts(self, count: int) -> None:
        self.done_parts += count
        self.show()

    def as_completed(self, futures: Sequence[Future[None]], shared: Any) -> Iterator[Future[None]]:
        """Yield the futures as they finish, and meanwhile show the counts that workers keep in `shared`."""
        left = set(futures)
        while left:
            finished, left = wait(left, timeout=0.5, return_when="FIRST_COMPLETED")
            self.done_bytes, self.done_tokens = shared[0], shared[1]
            self.show()
            yield from finished

    def show(self, force: bool = False) -> None:
        now = time.monotonic()
        if not is_visible():
            return
        if not force and now - self.shown < (0.2 if self.live else PLAIN_SECONDS):
            return
        self.shown = now
        elapsed = max(now - self.started, 1e-9)
        done, total = (self.done_bytes, self.total) if self.total else (self.done_parts, self.parts)
        facts = f"{format_count(self.done_tokens)} tokens  {format_count(self.done_tokens / elapsed)} tok/s"
        if self.live is not None:
            self.live.update(self.task, completed=done, facts=facts)
            return
        left = format_duration(elapsed * (total - done) / done) if done else "?"
        print(f"{self.title}: part {self.done_parts}/{self.parts}  {facts}  ETA {left}", file=sys.stderr, flush=True)
