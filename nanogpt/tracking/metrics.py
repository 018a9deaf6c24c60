"""metrics.jsonl: one JSON object a line, the only source for plots and reports.

Training rows: step, tokens, loss, lr, grad_norm. Evaluation rows: step, tokens, val_loss, val_bpb, train_loss, and of
training.eval_tasks e.g. hellaswag_acc. Nothing in it depends on the clock, so a resumed run writes the same bytes as an
undisturbed one; speeds go to timing.jsonl.
"""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from nanogpt.files import from_json, no_link, sync, write_atomic

Row = dict[str, float]
LARGEST = 1e100  # far beyond all that is measured, and small enough to be squared


def number(value: object) -> float | None:
    """A number of a size that can be counted with, or None for what isn't one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        return None
    return float(value)


def whole(value: object) -> int | None:
    """A count, such as a step, or None for what can't be one."""
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def sound(row: object) -> TypeGuard[Row]:
    """Whether something is a row: a step, and nothing but numbers."""
    if not isinstance(row, dict):
        return False
    values: dict[object, object] = row  # pyright: ignore[reportUnknownVariableType]
    return whole(values.get("step")) is not None and all(number(value) is not None for value in values.values())


class RowLog:
    """An append-only JSON lines file. Rows that a full disk doesn't take wait in memory and come first later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending = b""
        self.lock = threading.Lock()

    def append(self, row: Mapping[str, float]) -> bool:
        """Add a row. Returns whether it, and all before it, are the operating system's; if not they are kept."""
        with self.lock:
            self.pending += (json.dumps(row, allow_nan=False) + "\n").encode()
            try:
                self.flush()
            except OSError:
                return False
            return True

    def flush(self) -> None:
        """Hand over all that is pending; the file is opened anew, since log rotation may have moved it."""
        if not self.pending:
            return
        descriptor = no_link(str(self.path), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while self.pending:
                self.pending = self.pending[os.write(descriptor, self.pending) :]
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """Force all rows to disk: before a checkpoint that says they are there. Raises OSError."""
        with self.lock:
            self.flush()
            if self.path.exists():
                sync(self.path)

    def rewind(self, step: int, evaluated: int | None = None) -> None:
        """Drop rows after `step`, evaluations after `evaluated`, a torn last line: a restored run writes them again."""
        last = step if evaluated is None else evaluated
        kept = [row for row in read_rows(self.path) if row["step"] <= (last if "val_loss" in row else step)]
        if self.path.exists():
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a JSON lines file; lines that aren't one are passed over."""
    return read_lines(path)[0]


def read_lines(path: Path) -> tuple[list[Row], int]:
    """The same, and how many lines were passed over: torn by a crash, being written just now, or corrupt. Raises
    OSError.
    """
    try:
        return parse_rows(path.read_text(errors="replace"))
    except FileNotFoundError:
        return [], 0


def parse_rows(text: str) -> tuple[list[Row], int]:
    """The rows of some lines, and how many lines aren't one."""
    rows: list[Row] = []
    lines = text.splitlines()
    for line in lines:
        try:
            row: object = from_json(line)
        except ValueError:
            continue
        if sound(row):
            rows.append(row)
    return rows, len(lines) - len(rows)
