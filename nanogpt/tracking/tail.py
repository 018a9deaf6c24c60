"""Read metrics.jsonl and timing.jsonl as they grow, one row per step."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from nanogpt.files import open_regular
from nanogpt.metrics_file import Row, parse_rows


class RowTail:
    """Reads the rows added to a JSON lines file since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset, self.inode = 0, -1

    def read_new_rows(self) -> tuple[list[Row], bool]:
        """Return the rows of complete lines since the last call, and True if they are from the file's start.

        A replaced file is read from its start.
        """
        replaced = False
        try:
            with open_regular(self.path) as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self.inode or status.st_size < self.offset:
                    self.inode, self.offset, replaced = status.st_ino, 0, True
                file.seek(self.offset)
                text, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return [], False
        self.offset += len(text) + len(newline)
        return parse_rows(text.decode(errors="replace"))[0], replaced


class MetricsTail:
    """Reads the rows added since the last call, and merges the rows of a step, with its speed and time.

    A tracker takes each step once, so the row of a step with `due(step)` is held back until its evaluation, which a run
    that is stopped in between makes after its next start.
    """

    def __init__(self, path: Path, due: Callable[[int], bool], times: Mapping[int, float] | None = None) -> None:
        """Create a reader of metrics.jsonl. `times` has the times of evaluations of this process."""
        self.metrics, self.timing = RowTail(path), RowTail(path.with_name("timing.jsonl"))
        self.due, self.times = due, {} if times is None else times
        self.pending: Row = {}
        self.speeds = deque[Row]()
        """Rows of timing.jsonl that belong to later steps."""
        self.last_time: float | None = None
        """Time of the last row of timing.jsonl up to the step."""

    def read_steps(self) -> Iterator[Row]:
        """Yield the rows of steps that are complete."""
        rows, replaced = self.metrics.read_new_rows()
        self.read_speeds()  # after the rows, because the speed of a step is written before its row
        if replaced:
            self.pending = {}
        for row in rows:
            if self.pending and row["step"] != self.pending["step"]:
                yield self.with_speed(self.pending)
                self.pending = {}
            self.pending |= row
            if "val_loss" in row or not self.due(int(row["step"])):
                yield self.with_speed(self.pending)
                self.pending = {}

    def read_speeds(self) -> None:
        rows, replaced = self.timing.read_new_rows()
        if replaced:
            self.speeds.clear()
        self.speeds.extend(rows)

    def with_speed(self, row: Row) -> Row:
        """Return a row with `tokens_per_second`, `mfu` and `time` in seconds since 1970, as far as they are known.

        The time is that of the evaluation if it was made by this process, else of the training step or of the last one
        before it.
        """
        step = int(row["step"])
        while self.speeds and self.speeds[0]["step"] <= step:
            speed = self.speeds.popleft()
            self.last_time = speed.get("time")
            if speed["step"] == step:
                row = row | speed
        time = self.times.get(step, self.last_time)
        return row if time is None else row | {"time": time}
