"""Read text files, and the rows of JSON lines, CSV, TSV, parquet and Arrow files, of which one column is text."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from nanogpt.data.file_kinds import (
    BOM,
    Compression,
    FileKind,
    check_not_wide,
    conversion_command,
    import_pyarrow,
    open_content,
)
from nanogpt.errors import BadData, one_line
from nanogpt.files import from_json

LONGEST_FIELD = 2**31 - 1
COLUMNS_NAMED = 20


class TextRow(NamedTuple):
    """Text of a row, or the reason why it has none."""

    number: int
    """Number of the row in its file, from 0, bad rows included: it is part of the document's key."""
    where: str
    """Line or row, for messages."""
    text: str | None
    problem: str = ""


def read_text(path: Path, compression: Compression | None) -> str:
    """Return a file's text without a byte order mark, \\r\\n as \\n. Raises BadData if it isn't UTF-8."""
    with open_content(path, compression) as file:
        content = file.read()
    check_not_wide(path, content)
    try:
        text = content.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + (len(BOM) if content.startswith(BOM) else 0)
        why = f"not UTF-8 text (byte {offset}); if it is Latin-1, {conversion_command(path, 'LATIN1')}"
        raise BadData(f"{one_line(path)}: {why}") from None
    return text.replace("\r\n", "\n")


def read_rows(path: Path, kind: FileKind, column: str) -> Iterator[TextRow]:
    """Yield the rows of a file in order. Raises BadData if it can't be read or lacks the column."""
    match kind.format:
        case "json" | "jsonl":
            return read_json_rows(path, kind.compression, column)
        case "csv" | "tsv":
            return read_csv_rows(path, kind.compression, column, "," if kind.format == "csv" else "\t")
        case "parquet" | "arrow":
            return read_table_rows(path, kind, column)
        case "text":
            raise AssertionError("a text file has no rows")


def make_row(index: int, where: str, values: Any, column: str) -> TextRow:
    """Return the row with the text in a column of `values`, or with the reason why it has none."""
    if not isinstance(values, dict):
        return TextRow(index, where, None, f"{describe_type(values)} instead of an object with the key {column!r}")
    if column not in values:
        keys: list[str] = [str(key) for key in values]  # pyright: ignore[reportUnknownVariableType]
        return TextRow(index, where, None, f"no {column!r} in it; its keys are {list_columns(keys)}")
    return make_text_row(index, where, values[column], column)


def make_text_row(index: int, where: str, value: Any, column: str) -> TextRow:
    """Return the row with this text, or with the reason why the value isn't text."""
    if not isinstance(value, str):
        return TextRow(index, where, None, f"{column!r} is {describe_type(value)}, not text")
    if any(0xD800 <= ord(char) < 0xE000 for char in value):
        return TextRow(index, where, None, f"{column!r} holds half a surrogate pair, which UTF-8 can't encode")
    return TextRow(index, where, value)


def describe_type(value: object) -> str:
    """Return the type of a JSON value, for messages."""
    kinds: dict[type, str] = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    kinds |= {list: "a list", dict: "an object", bytes: "bytes"}
    return kinds.get(type(value), type(value).__name__)


def list_columns(names: Sequence[str]) -> str:
    """Return the first names of columns, for messages."""
    return ", ".join(names[:COLUMNS_NAMED]) + (" …" if len(names) > COLUMNS_NAMED else "") if names else "none"


def read_json_rows(path: Path, compression: Compression | None, column: str) -> Iterator[TextRow]:
    """Yield the objects of a file that has an object on each line, or is an array of objects."""
    with open_content(path, compression) as file:
        beginning = file.read(4096).removeprefix(BOM).lstrip()[:1]
    if beginning == b"[":
        yield from read_json_array(path, compression, column)
        return
    with open_content(path, compression) as file:
        index = 0
        for number, line in enumerate(file, 1):
            line = line.removeprefix(BOM) if number == 1 else line
            if not line.strip():
                continue
            yield parse_json_row(index, f"line {number}", line, column)
            index += 1


def parse_json_row(index: int, where: str, line: bytes, column: str) -> TextRow:
    """Return the row of a line of JSON."""
    try:
        return make_row(index, where, from_json(line.decode("utf-8")), column)
    except UnicodeDecodeError as error:
        return TextRow(index, where, None, f"not UTF-8 (byte {error.start} of the line)")
    except ValueError as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else one_line(error, 100)
        return TextRow(index, where, None, f"not JSON: {why}; each line must be a JSON object")


def read_json_array(path: Path, compression: Compression | None, column: str) -> Iterator[TextRow]:
    """Yield the objects of a JSON array. Raises BadData for any other content."""
    try:
        values: list[Any] = from_json(read_text(path, compression))
    except ValueError as error:
        raise BadData(f"{one_line(path)}: not a JSON array of objects: {one_line(error, 200)}") from None
    for index, value in enumerate(values):
        yield make_row(index, f"row {index}", value, column)


def read_csv_rows(path: Path, compression: Compression | None, column: str, delimiter: str) -> Iterator[TextRow]:
    """Yield the rows below a header that names the column; a quoted field may hold delimiters and line ends."""
    csv.field_size_limit(LONGEST_FIELD)
    with open_content(path, compression) as file:
        reader = csv.reader(decode_lines(path, file), delimiter=delimiter, strict=True)
        try:
            header = next((row for row in reader if row), [])
            if header.count(column) != 1:
                raise missing_column_error(path, column, header)
            position, index = header.index(column), 0
            for row in reader:
                if not row:
                    continue
                where = f"line {reader.line_num}"
                if len(row) == len(header):
                    yield TextRow(index, where, row[position])
                else:
                    yield TextRow(index, where, None, f"{len(row)} fields, the header has {len(header)}")
                index += 1
        except csv.Error as error:
            remedy = "; double the quotes inside quoted fields" if "expected after" in str(error) else ""
            raise BadData(f"{one_line(path)}: line {reader.line_num}: {one_line(error, 200)}{remedy}") from None


def missing_column_error(path: Path, column: str, columns: Sequence[str]) -> BadData:
    """Return the error for a file without the column, or with several of that name."""
    why = "several columns of that name" if column in columns else "no such column"
    return BadData(
        f"data.text_column={one_line(column)}: {one_line(path)}: {why}; its columns: {list_columns(columns)}"
    )


def decode_lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their ends. Raises BadData naming the first line that isn't UTF-8."""
    for number, line in enumerate(file, 1):
        try:
            yield (line.removeprefix(BOM) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadData(f"{one_line(path)}: line {number}: not UTF-8 (byte {error.start} of the line)") from None


def read_table_rows(path: Path, kind: FileKind, column: str) -> Iterator[TextRow]:
    """Yield the rows of a parquet or Arrow file."""
    arrow = import_pyarrow(f"{kind.format} files")
    index = 0
    with open_content(path, kind.compression) as file:
        content: Any = arrow.BufferReader(file.read()) if kind.compression else file
        for batch in read_record_batches(arrow, path, content, kind, column):
            for value in batch.column(column).to_pylist():
                yield make_text_row(index, f"row {index}", value, column)
                index += 1


def read_record_batches(arrow: Any, path: Path, content: Any, kind: FileKind, column: str) -> Iterator[Any]:
    """Yield the record batches of a table. Raises BadData if it can't be read or lacks the column."""
    try:
        if kind.format == "parquet":
            table = arrow.parquet.ParquetFile(content)
            check_column(path, column, table.schema_arrow)
            yield from table.iter_batches(batch_size=1024, columns=[column])
            return
        is_file = content.read(6) == b"ARROW1"
        content.seek(0)
        table = arrow.ipc.open_file(content) if is_file else arrow.ipc.open_stream(content)
        check_column(path, column, table.schema)
        yield from (table.get_batch(i) for i in range(table.num_record_batches)) if is_file else table
    except (arrow.ArrowException, OSError) as error:
        raise BadData(f"{one_line(path)}: can't be read as {kind.format}: {one_line(error, 200)}") from None


def check_column(path: Path, column: str, schema: Any) -> None:
    """Raise BadData if a schema lacks the column or its type isn't text."""
    if list(schema.names).count(column) != 1:
        raise missing_column_error(path, column, schema.names)
    kind = schema.field(column).type
    values = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind
    if str(values) not in ("string", "large_string", "string_view", "null"):
        raise BadData(f"data.text_column={one_line(column)}: {one_line(path)}: the column holds {kind}, not text")
