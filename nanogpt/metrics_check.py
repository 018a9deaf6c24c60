"""Check the rows of metrics.jsonl against what a checkpoint recorded of them, and repair what can be repaired.

A checkpoint has the number of rows up to its step and the sha256 of their bytes. Losses cannot be computed again, so
rows that were lost or edited since then are always reported.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from nanogpt.files import from_json
from nanogpt.schema import ConfigModel

ORDER = "the rows were out of order; they are repaired exactly"


class RowsRecord(ConfigModel):
    """Number and digest of the rows up to a checkpoint."""

    count: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class RowSelection:
    """The lines to keep, each with its newline, and what was wrong with the file, empty if nothing."""

    lines: list[bytes]
    problem: str = ""
    repaired: bool = False


def digest_lines(lines: Iterable[bytes]) -> str:
    """Return the sha256 of some lines."""
    return hashlib.sha256(b"".join(lines)).hexdigest()


def select_lines(content: bytes, keep: Callable[[object], bool], record: RowsRecord | None) -> RowSelection:
    """Select the lines of a JSON lines file that belong to a checkpoint.

    `keep` returns whether a parsed line is a row up to the checkpoint's step. Without a record, as in checkpoints of
    earlier versions, these rows are selected, and complete lines that cannot be parsed are reported.
    """
    lines = content.splitlines(keepends=True)
    torn = lines and not lines[-1].endswith(b"\n")
    if torn:
        lines[-1] += b"\n"  # perhaps only the newline is missing; a row that is cut off does not parse
    rows = [(line, parse_line(line)) for line in lines]
    kept = [line for line, row in rows if row is not None and keep(row)]
    unread = sum(row is None for _, row in (rows[:-1] if torn else rows))
    if record is not None and digest_lines(lines[: record.count]) == record.sha256:
        extra = len(kept) + unread - record.count
        return RowSelection(lines[: record.count], repair_note(extra), repaired=bool(extra))
    if record is None:
        return RowSelection(kept, f"lines that can't be read: {unread}; they were left out" if unread else "")
    unique = list(dict.fromkeys(kept))
    for candidate in (kept, unique, sorted(unique, key=step_and_kind)):
        if len(candidate) == record.count and digest_lines(candidate) == record.sha256:
            return RowSelection(candidate, repair_note(len(kept) + unread - record.count) or ORDER, repaired=True)
    if len(unique) < record.count:
        what = f"{record.count - len(unique)} of the {record.count} rows that the checkpoint counted are missing"
    else:
        what = f"some of the {record.count} rows that the checkpoint counted were changed"
    return RowSelection(unique, f"{what}; curves and reports of this run are incomplete")


def repair_note(extra: int) -> str:
    """Return the report of extra lines in the file; empty if there were none."""
    return f"lines that don't belong there: {extra}; they were left out, the rows are repaired exactly" if extra else ""


def parse_line(line: bytes) -> object:
    """Return the value of a line of JSON, or None if it does not parse."""
    try:
        return from_json(line)
    except ValueError:
        return None


def step_and_kind(line: bytes) -> tuple[int, bool]:
    """Return the sort key of a row: its step, and whether it is an evaluation, which follows the training row."""
    row = parse_line(line)
    assert isinstance(row, dict)
    return int(row["step"]), "val_loss" in row  # pyright: ignore[reportUnknownArgumentType]
