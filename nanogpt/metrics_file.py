"""metrics.jsonl: one JSON object per line, the only source for plots and reports.

Training rows: step, tokens, epoch, loss, lr, grad_norm, and spikes and skipped where there are any. Evaluation rows:
step, tokens, val_loss, val_bpb, train_loss, and for training.eval_tasks e.g. hellaswag_acc. Nothing in it depends on
the clock, so a resumed run writes the same bytes as an uninterrupted one; speeds go to timing.jsonl.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from nanogpt.files import from_json, fsync, open_no_link, read_bytes, read_text, write_atomic
from nanogpt.metrics_check import RowSelection, RowsRecord, select_lines

Row = dict[str, float]
MAX_ABS = 1e100  # far beyond all that is measured, and small enough to be squared


def as_number(value: object) -> float | None:
    """Return a number as a float, or None for anything else, including infinities and absurdly large numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_ABS:
        return None
    return float(value)


def as_count(value: object) -> int | None:
    """Return a count, such as a step, or None for anything else."""
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def is_row(row: object) -> TypeGuard[Row]:
    """Return whether this is a row: an object with a step and only numbers."""
    if not isinstance(row, dict):
        return False
    values: dict[object, object] = row  # pyright: ignore[reportUnknownVariableType]
    return as_count(values.get("step")) is not None and all(as_number(value) is not None for value in values.values())


class RowLog:
    """An append-only JSON lines file. Rows that a full disk does not take are kept in memory and written later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending = b""
        self.lock = threading.Lock()
        self.count, self.digest = 0, hashlib.sha256()
        """Number and digest of all rows, those that `rewind` kept and those appended since."""

    def append(self, row: Mapping[str, float]) -> bool:
        """Append a row. Returns whether all rows are written; rows that are not stay in memory."""
        with self.lock:
            line = (json.dumps(row, allow_nan=False) + "\n").encode()
            self.pending += line
            self.count += 1
            self.digest.update(line)
            try:
                self.flush()
            except OSError:
                return False
            return True

    def flush(self) -> None:
        """Write all pending rows. The file is opened each time, because log rotation may have moved it."""
        if not self.pending:
            return
        descriptor = open_no_link(str(self.path), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while self.pending:
                self.pending = self.pending[os.write(descriptor, self.pending) :]
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """Force all rows to disk, before a checkpoint that counts them. Raises OSError."""
        with self.lock:
            self.flush()
            if self.path.exists():
                fsync(self.path)

    def record(self) -> dict[str, Any]:
        """Return number and digest of the rows so far, for a checkpoint (`RowsRecord`)."""
        with self.lock:
            return {"count": self.count, "sha256": self.digest.hexdigest()}

    def rewind(self, step: int, evaluated: int | None = None, record: RowsRecord | None = None) -> RowSelection:
        """Drop rows after `step` and evaluations after `evaluated`, which a resumed run writes again.

        The rows are checked against the checkpoint's record, if it has one. Return the rows that were kept and what was
        wrong. If rows are missing or were edited, the original file is copied to `metrics.jsonl.damaged`.
        """
        last = step if evaluated is None else evaluated

        def keep(row: object) -> bool:
            return is_row(row) and row["step"] <= (last if "val_loss" in row else step)

        try:
            content = read_bytes(self.path)
        except FileNotFoundError:
            content = None
        chosen = select_lines(content or b"", keep, record)
        kept = b"".join(chosen.lines)
        if chosen.problem and not chosen.repaired and content and kept != content:
            save_damaged_copy(self.path, content)
        if content is not None and kept != content:
            write_atomic(self.path, kept)
        with self.lock:
            self.count, self.digest = len(chosen.lines), hashlib.sha256(kept)
        return chosen


def save_damaged_copy(path: Path, content: bytes) -> None:
    """Write the content of a damaged file next to it, under a new name."""
    aside, number = path.with_name(f"{path.name}.damaged"), 2
    while os.path.lexists(aside):
        aside, number = path.with_name(f"{path.name}.damaged-{number}"), number + 1
    write_atomic(aside, content)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON lines file, without lines that are not rows."""
    return read_rows_and_skipped(path)[0]


def read_rows_and_skipped(path: Path) -> tuple[list[Row], int]:
    """Return the rows, and the number of other lines: cut off by a crash, being written, or corrupt. Raises OSError."""
    try:
        return parse_rows(read_text(path, "replace"))
    except FileNotFoundError:
        return [], 0


def parse_rows(text: str) -> tuple[list[Row], int]:
    """Return the rows of a text, and the number of lines that are not rows."""
    rows: list[Row] = []
    lines = text.splitlines()
    for line in lines:
        try:
            row: object = from_json(line)
        except ValueError:
            continue
        if is_row(row):
            rows.append(row)
    return rows, len(lines) - len(rows)
