"""Measure durations and memory, and format them."""

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
"""Name and value of each measurement."""


@dataclass(frozen=True)
class MarkdownTable:
    """A table; the first column names what was measured."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def time_call(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def choose_synchronize(device: torch.device) -> Callable[[], None]:
    """Return the function that waits until the device has finished all queued work; on a CPU it does nothing."""
    waits = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    return waits.get(device.type, lambda: None)


def format_spread(durations: Sequence[float]) -> str:
    """Format seconds as `median ms (min to max, n)`."""
    return format_range([1e3 * value for value in durations], " ms", f", n={len(durations)}")


def format_range(values: Sequence[float], unit: str = "", more: str = "") -> str:
    """Format values as `median unit (min to max more)`, a single value as `value unit`."""
    median = f"{format_digits(statistics.median(values))}{unit}"
    spread = f" ({format_digits(min(values))} to {format_digits(max(values))}{more})" if len(values) > 1 else ""
    return median + spread


def format_digits(value: float) -> str:
    """Format with three significant digits, from 1,000 on as a whole number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def peak_resident() -> int:
    """Return the peak resident bytes of this process.

    On Linux getrusage would include the parent's memory at the time of the fork, which survives exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Stopwatch:
    """Seconds in each phase of a step, with the device synchronized before and after each phase."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.synchronize = synchronize
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Generator[None, None, None]:
        """Add the time spent inside to a phase."""
        self.synchronize()
        started = time.perf_counter()
        yield
        self.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
