"""metrics.jsonl: one JSON object a line, the only source for plots and reports.

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
    """A number of a size that can be counted with, or None for what isn't one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_ABS:
        return None
    return float(value)


def as_count(value: object) -> int | None:
    """A count, such as a step, or None for what can't be one."""
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def is_row(row: object) -> TypeGuard[Row]:
    """Whether something is a row: a step, and nothing but numbers."""
    if not isinstance(row, dict):
        return False
    values: dict[object, object] = row  # pyright: ignore[reportUnknownVariableType]
    return as_count(values.get("step")) is not None and all(as_number(value) is not None for value in values.values())


class RowLog:
    """An append-only JSON lines file. Rows that a full disk doesn't take wait in memory and come first later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending = b""
        self.lock = threading.Lock()
        self.count, self.digest = 0, hashlib.sha256()
        """Number and digest of all rows since the last `rewind`, and of those that it kept."""

    def append(self, row: Mapping[str, float]) -> bool:
        """Add a row. Returns whether it, and all before it, are the operating system's; if not they are kept."""
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
        """Hand over all that is pending; the file is opened anew, since log rotation may have moved it."""
        if not self.pending:
            return
        descriptor = open_no_link(str(self.path), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
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
                fsync(self.path)

    def record(self) -> dict[str, Any]:
        """Return number and digest of the rows so far, for a checkpoint (`RowsRecord`)."""
        with self.lock:
            return {"count": self.count, "sha256": self.digest.hexdigest()}

    def rewind(self, step: int, evaluated: int | None = None, record: RowsRecord | None = None) -> RowSelection:
        """Drop rows after `step` and evaluations after `evaluated`: a resumed run writes them again.

        With the checkpoint's record the rows are checked against it. Return what was kept and what was wrong. Where
        rows are missing or were edited, the file as it was found stays beside as `metrics.jsonl.damaged`.
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
    """Write the content of a damaged file beside it, under a name that is free."""
    aside, number = path.with_name(f"{path.name}.damaged"), 2
    while os.path.lexists(aside):
        aside, number = path.with_name(f"{path.name}.damaged-{number}"), number + 1
    write_atomic(aside, content)


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a JSON lines file; lines that aren't one are passed over."""
    return read_rows_and_skipped(path)[0]


def read_rows_and_skipped(path: Path) -> tuple[list[Row], int]:
    """The same, and how many lines were passed over: torn by a crash, being written just now, or corrupt. Raises
    OSError.
    """
    try:
        return parse_rows(read_text(path, "replace"))
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
        if is_row(row):
            rows.append(row)
    return rows, len(lines) - len(rows)
