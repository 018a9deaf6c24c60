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

from nanogpt.files import sync, write_atomic

Row = dict[str, float]


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
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
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
    rows: list[Row] = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row: object = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)  # pyright: ignore[reportUnknownArgumentType]
    return rows
