"""Durations, memory, and how they are written down."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class MarkdownTable:
    """One table of the answer; the first column names what was measured."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def time_call(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def choose_synchronize(device: torch.device) -> Callable[[], None]:
    """What waits for a device to have done all it was given; a CPU always has."""
    waits = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    return waits.get(device.type, lambda: None)


def format_spread(durations: Sequence[float]) -> str:
    """Seconds as `median ms (min to max, n)`."""
    return format_range([1e3 * value for value in durations], " ms", f", n={len(durations)}")


def format_range(values: Sequence[float], unit: str = "", more: str = "") -> str:
    """`median unit (min to max more)`, of a single value only it."""
    median = f"{format_digits(statistics.median(values))}{unit}"
    return (
        median if len(values) == 1 else f"{median} ({format_digits(min(values))} to {format_digits(max(values))}{more})"
    )


def format_digits(value: float) -> str:
    """Three digits, or the whole part where that has more."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def peak_resident() -> int:
    """Most bytes of memory that this process held at once.

    getrusage would count what the parent held when it started this process: Linux keeps that across exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Stopwatch:
    """Seconds spent in each of the phases of a step, the device waited for at their ends."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.synchronize = synchronize
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Generator[None, None, None]:
        """Add what happens inside to a phase."""
        self.synchronize()
        started = time.perf_counter()
        yield
        self.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
