"""Where the documents of a benchmark come from: local files that a key names, else the Hugging Face hub."""

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
"""Where a row is, for messages, and the row."""


@dataclass(frozen=True)
class BenchmarkSource:
    """One benchmark's documents, not read yet."""

    key: str
    """The key that names local files, e.g. `eval.hellaswag`; errors name it too."""
    given: str | None
    """That key's value: a file or a folder."""
    hub: str
    hub_config: str | None
    split: str
    """On the hub; a folder's files are those that have its beginning in their names."""
    text_endings: tuple[str, ...]
    """Endings of local files that aren't tables."""

    def local_files(self) -> tuple[Path, ...]:
        """The local files; none: the hub. Raises BadData."""
        if self.given is None:
            return ()
        path, endings = Path(os.path.expanduser(self.given)), (*self.text_endings, ".jsonl", ".parquet")
        if not path.exists():
            raise BadData(f"{self.key}={one_line(self.given)}: no such file")
        if path.is_dir():
            found = sorted(one for one in path.iterdir() if one.name.endswith(endings) and self.split[:3] in one.name)
            return tuple(found) or self.raise_bad_source(
                f"no file of the {self.split} split in it; {describe_endings(endings)}"
            )
        return (
            (path,)
            if path.name.endswith(endings)
            else self.raise_bad_source(f"can't be read; {describe_endings(endings)}")
        )

    def raise_bad_source(self, why: str) -> Any:
        raise BadData(f"{self.key}={one_line(self.given)}: {why}")

    def read_rows(self) -> Iterator[LocatedRow]:
        """The rows of local tables, or of the hub's split. Raises BadData, BadEnvironment."""
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
        """A value of a row. Raises BadData when it isn't of this kind."""
        if not isinstance(row.get(name), kind):
            columns = ", ".join(map(str, row))
            self.raise_bad_row(where, f"has no {kind.__name__} '{name}'; its columns are {one_line(columns)}")
        return row[name]

    def raise_bad_row(self, where: str, why: str) -> NoReturn:
        """Raise BadData for a row that can't be scored."""
        raise BadData(f"{self.key}: {where} {why}")


def describe_endings(endings: tuple[str, ...]) -> str:
    return f"allowed: {', '.join(endings)}"


def read_json_lines(path: Path) -> Iterator[LocatedRow]:
    """The objects of a JSON lines file, each with its line. Raises BadData naming the first line that isn't one."""
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
    """The text of a file, also of a .bz2, with plain line ends. Raises BadData."""
    try:
        content = read_bytes(path)
        content = bz2.decompress(content) if path.suffix == ".bz2" else content
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadData(f"{one_line(path)}: not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError, EOFError) as error:
        raise BadData(f"{one_line(path)}: {one_line(error, 200)}") from None
