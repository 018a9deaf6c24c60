"""Sources of a benchmark's documents: local files, or the Hugging Face hub."""

import bz2
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nanogpt.data.hub_data import iterate_stream, open_stream
from nanogpt.errors import BadData, one_line
from nanogpt.files import from_json, read_bytes

JsonObject = dict[str, Any]
LocatedRow = tuple[str, JsonObject]
"""The location of a row, for messages, and the row."""


@dataclass(frozen=True)
class BenchmarkSource:
    """The documents of a benchmark, not yet read."""

    key: str
    """Config key of the local files, e.g. `eval.hellaswag`."""
    given: str | None
    """Value of that key: a file, a folder, or None for the hub."""
    hub: str
    hub_config: str | None
    split: str
    """Split on the hub. Of a local folder, files with its first three letters in their names are read."""
    text_endings: tuple[str, ...]
    """Endings of local files that are not tables."""

    def local_files(self) -> tuple[Path, ...]:
        """Return the local files, or nothing for the hub. Raises BadData."""
        if self.given is None:
            return ()
        what, path = f"{self.key}={one_line(self.given)}", Path(os.path.expanduser(self.given))
        endings = (*self.text_endings, ".jsonl", ".parquet")
        if not path.exists():
            raise BadData(f"{what}: no such file")
        files = [file for file in sorted(path.iterdir()) if self.split[:3] in file.name] if path.is_dir() else [path]
        if found := tuple(file for file in files if file.name.endswith(endings)):
            return found
        why = f"no file of the {self.split} split in it" if path.is_dir() else "unknown kind of file"
        raise BadData(f"{what}: {why}; allowed: {', '.join(endings)}")

    def read_rows(self) -> Iterator[LocatedRow]:
        """Yield the rows of local tables, or of the hub's split. Raises BadData, BadEnvironment."""
        for path in self.local_files():
            if path.suffix == ".jsonl":
                yield from read_json_lines(path)
            else:
                rows = iterate_stream(path.name, open_stream("parquet", data_files=str(path)))
                yield from ((f"row {number} of {one_line(path)}", row) for number, row in enumerate(rows, 1))
        if self.given is None:
            remedy = f"use a local file with {self.key}=PATH"
            stream = open_stream(self.hub, split=self.split, remedy=remedy, name=self.hub_config)
            rows = iterate_stream(self.hub, stream)
            yield from ((f"row {number} of {self.hub}", row) for number, row in enumerate(rows, 1))

    def get_column(self, row: JsonObject, where: str, name: str, kind: type) -> Any:
        """Return a value of a row. Raises BadData if it is not a `kind`."""
        if not isinstance(row.get(name), kind):
            columns = ", ".join(map(str, row))
            self.raise_bad_row(where, f"has no {kind.__name__} '{name}'; its columns are {one_line(columns)}")
        return row[name]

    def raise_bad_row(self, where: str, why: str) -> NoReturn:
        """Raise BadData that names the row."""
        raise BadData(f"{self.key}: {where} {why}")


def read_json_lines(path: Path) -> Iterator[LocatedRow]:
    """Yield the objects of a JSON lines file. Raises BadData naming the first line that is not an object."""
    for number, line in enumerate(read_text_file(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: object = from_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise BadData(f"{one_line(path)}: line {number} is not a JSON object")
        yield f"line {number} of {one_line(path)}", {str(name): value for name, value in row.items()}


def read_text_file(path: Path) -> str:
    """Return the text of a file, also of a .bz2, with `\\n` as line end. Raises BadData."""
    try:
        content = read_bytes(path)
        content = bz2.decompress(content) if path.suffix == ".bz2" else content
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadData(f"{one_line(path)}: not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError, EOFError) as error:
        raise BadData(f"{one_line(path)}: {one_line(error, 200)}") from None
