"""What a person watches: a live bar on a terminal, plain lines in a pipe or a cluster's log, the same facts in both."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

PLAIN_SECONDS = 10.0  # between lines of a Meter that has no terminal

# Matplotlib warns while it is imported for the first time, but only on machines that are busy.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def format_duration(duration: float) -> str:
    """`45s`, `3m20s`, `2h05m`, `3d04h`."""
    whole = max(0, round(duration))
    for unit, size, small, part in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{small}"
    return f"{whole}s"


def format_count(number: float, billion: str = "B") -> str:
    """`950`, `12.3k`, `4.56M`, `1.2B`; FLOPs and bytes say `billion="G"`."""
    for size, unit in ((1e12, "T"), (1e9, billion), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def escape_control_chars(line: str) -> str:
    """A line without power over the terminal: control characters are written as escapes."""
    return "".join(c if c.isprintable() or c in "\t\ufffd" else ascii(c)[1:-1] for c in line)


def shorten(text: str, most: int) -> str:
    """A text with its beginning and, of twice the length, its end: where names of runs and files differ."""
    if len(text) <= most:
        return text
    head = (most - 1) // 3
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


class _Voice:
    silent = False


def silence(silent: bool) -> None:
    """Whether this process keeps quiet: all ranks but the leader do."""
    _Voice.silent = silent


def say(text: str = "") -> None:
    """A line for a person, on standard output. When its reader has gone (`| head`), training goes on without one."""
    if _Voice.silent:
        return
    try:
        print(text, flush=True)
    except OSError:  # a pipe without a reader, a terminal that is gone, a full disk
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)


def format_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as text, as wide as it needs to be."""
    drawn = Table(*map(Column, map(Text, columns)), title=Text(title), title_justify="left", show_header=any(columns))
    for row in rows:
        drawn.add_row(*map(Text, row))  # Text: a bracket or a colon in a name is no markup
    console = Console(width=120, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip()


class TrainProgress:
    """The progress of a training run. `show` takes the facts of one logged step."""

    def __init__(self, first: int, total: int) -> None:
        self.total = total
        self.live: Progress | None = None
        if sys.stdout.isatty():
            self.live = Progress(
                TextColumn("step"), MofNCompleteColumn(), BarColumn(24), TextColumn("{task.fields[facts]}")
            )
            self.task = self.live.add_task("train", total=total, completed=first, facts="")
            self.live.start()

    def show(self, step: int, facts: dict[str, str]) -> None:
        """Move the bar, or print one line."""
        line = "  ".join(f"{name} {value}" for name, value in facts.items())
        if self.live is None:
            say(f"step {step}/{self.total}  {line}")
        else:
            with suppress(OSError):  # the terminal is gone
                self.live.update(self.task, completed=step, facts=line)

    def note(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self.live is None:
            say(text)
        else:
            with suppress(OSError):
                self.live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        if self.live is not None:
            with suppress(OSError):
                self.live.stop()
            self.live = None


class LiveText:
    """A text that is replaced in place on a terminal; elsewhere only its notes are printed, one line each."""

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
        """A line for those who have no terminal."""
        if self.live is None:
            say(text)

    def close(self) -> None:
        if self.live is not None:
            with suppress(OSError):
                self.live.update(Text(""), refresh=True)
                self.live.stop()
            self.live = None


class TokenizeProgress:
    """The progress of tokenising: text bytes done, tokens a second, time left."""

    def __init__(self, title: str, total_bytes: int | None, parts: int) -> None:
        self.title, self.total, self.parts = title, total_bytes, parts
        self.done_bytes = self.done_tokens = self.done_parts = 0
        self.started = self.shown = time.monotonic()
        self.live: Progress | None = None

    def __enter__(self) -> "TokenizeProgress":
        if sys.stderr.isatty() and not _Voice.silent:
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
        """Count what one document brought."""
        self.done_bytes += n_bytes
        self.done_tokens += n_tokens
        self.show()

    def add_parts(self, count: int) -> None:
        self.done_parts += count
        self.show()

    def as_completed(self, futures: Sequence[Future[None]], shared: Any) -> Iterator[Future[None]]:
        """The futures as they finish; meanwhile the counts that workers keep in `shared` are shown."""
        left = set(futures)
        while left:
            finished, left = wait(left, timeout=0.5, return_when="FIRST_COMPLETED")
            self.done_bytes, self.done_tokens = shared[0], shared[1]
            self.show()
            yield from finished

    def show(self, force: bool = False) -> None:
        now = time.monotonic()
        if _Voice.silent:
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
