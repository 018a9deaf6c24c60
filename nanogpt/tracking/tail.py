"""metrics.jsonl as trackers take it: one row for each step, once nothing can be added to it any more."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from nanogpt.files import open_regular
from nanogpt.metrics_file import Row, parse_rows


class MetricsTail:
    """Reads the rows that were added since the last look, and puts those of one step together.

    The row of a step whose evaluation is still to come is held back: a tracker takes each step once, and a run that is
    stopped between the two makes the evaluation after its next start.
    """

    def __init__(self, path: Path, due: Callable[[int], bool]) -> None:
        self.path, self.due = path, due
        self.offset, self.inode = 0, -1
        self.pending: Row = {}

    def read_steps(self) -> Iterator[Row]:
        """The steps that became whole."""
        for row in self.read_new_rows():
            if self.pending and row["step"] != self.pending["step"]:
                yield self.pending
                self.pending = {}
            self.pending |= row
            if "val_loss" in row or not self.due(int(row["step"])):
                yield self.pending
                self.pending = {}

    def read_new_rows(self) -> list[Row]:
        """The whole lines since the last look. A file that was replaced is read from its start."""
        try:
            with open_regular(self.path) as file:
                about = os.fstat(file.fileno())
                if about.st_ino != self.inode or about.st_size < self.offset:
                    self.inode, self.offset, self.pending = about.st_ino, 0, {}
                file.seek(self.offset)
                text, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self.offset += len(text) + len(newline)
        return parse_rows(text.decode(errors="replace"))[0]
