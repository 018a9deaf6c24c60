"""Read metrics.jsonl as it grows, one row per step."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from nanogpt.files import open_regular
from nanogpt.metrics_file import Row, parse_rows


class MetricsTail:
    """Reads the rows added since the last call, and merges the rows of a step.

    A tracker takes each step once, so the row of a step with `due(step)` is held back until its evaluation, which a run
    that is stopped in between makes after its next start.
    """

    def __init__(self, path: Path, due: Callable[[int], bool]) -> None:
        self.path, self.due = path, due
        self.offset, self.inode = 0, -1
        self.pending: Row = {}

    def read_steps(self) -> Iterator[Row]:
        """Yield the rows of steps that are complete."""
        for row in self.read_new_rows():
            if self.pending and row["step"] != self.pending["step"]:
                yield self.pending
                self.pending = {}
            self.pending |= row
            if "val_loss" in row or not self.due(int(row["step"])):
                yield self.pending
                self.pending = {}

    def read_new_rows(self) -> list[Row]:
        """Return the rows of complete lines since the last call. A replaced file is read from its start."""
        try:
            with open_regular(self.path) as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self.inode or status.st_size < self.offset:
                    self.inode, self.offset, self.pending = status.st_ino, 0, {}
                file.seek(self.offset)
                text, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self.offset += len(text) + len(newline)
        return parse_rows(text.decode(errors="replace"))[0]
