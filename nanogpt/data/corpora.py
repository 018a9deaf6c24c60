"""Sources of text: Python's standard library, tiny Shakespeare, the Hugging Face hub, and local files.

A corpus is a list of parts, each tokenized by one process; a part yields documents. Both follow from the config alone,
so a worker process needs only the number of its part.
"""

import hashlib
import platform
import re
import sysconfig
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import assert_never

from nanogpt.config import DataConfig
from nanogpt.data.file_kinds import FileKind, detect_kind
from nanogpt.data.hub_data import find_hub_splits, read_hub_rows
from nanogpt.data.local_files import LocalFiles, file_size, find_files, join_names, relative_name
from nanogpt.data.rows import TextRow, read_rows, read_text
from nanogpt.data.shards import SplitName, file_sha256
from nanogpt.data.splits import SplitFiles, divide_by_names
from nanogpt.errors import BadData, BadEnvironment, one_line
from nanogpt.files import read_bytes

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
PART_BYTES = 64 * 2**20  # approximate size of a part of local files
FEW_DOCUMENTS = 50  # below this, the end of each document is held out instead of whole documents
BAD_ROWS_NAMED = 3
README_NAME = re.compile(r"(readme|licen[cs]e|copying|notice|authors|changelog|contributing)\b", re.IGNORECASE)


class Document(NamedTuple):
    """A text and the key that decides its split."""

    key: str
    text: str


class CorpusPart(NamedTuple):
    """A unit of work: local files, or one file of a hub data set."""

    split: SplitName | None
    """The split of the whole part, by the source's own names; None: `data.val_fraction` decides."""
    files: tuple[Path, ...] = ()
    hub_split: str = ""
    hub_file: int = 0


@dataclass
class BadRows:
    """Count of the rows without a text, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list[str])

    def add(self, where: str) -> None:
        self.count += 1
        if len(self.first) < BAD_ROWS_NAMED:
            self.first.append(where)


@dataclass(frozen=True)
class Corpus:
    """Source of text as its config names it, found but not read."""

    config: DataConfig
    source: LocalFiles
    """Local files; none for a hub data set."""
    split_files: SplitFiles
    hub_splits: tuple[tuple[str, int], ...] = ()
    """Splits of the hub data set that are used, with their numbers of files."""
    notes: tuple[str, ...] = ()
    """Files left out or read in an unexpected way, as far as their names tell; one sentence each."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Local files that are read, in order."""
        return (*self.split_files.train, *self.split_files.val)

    @cached_property
    def kinds(self) -> dict[Path, FileKind]:
        """Format of each local file. Raises BadData for an unreadable file, and for files of several formats."""
        kinds = {path: detect_kind(path) for path in self.files}
        by_format: dict[str, list[str]] = {}
        for path, kind in kinds.items():
            by_format.setdefault(kind.format, []).append(self.relative_name(path))
        if len(by_format) > 1:
            listed = "; ".join(f"{len(names):,} {kind} ({join_names(names)})" for kind, names in by_format.items())
            with_rows = next(names[0] for kind, names in by_format.items() if kind != "text")
            example = one_line(self.source.root / "**" / f"*{Path(with_rows).suffix}", 1000)
            why = f"files of several kinds: {listed}; choose one kind with a glob, e.g. data.source='{example}'"
            raise BadData(f"data.source={one_line(self.config.source)}: {why}")
        self.check_no_packed_duplicate(kinds)
        return kinds

    def check_no_packed_duplicate(self, kinds: Mapping[Path, FileKind]) -> None:
        """Raise BadData if a file lies beside its compressed form: its text would count twice."""
        for path, kind in kinds.items():
            if kind.compression and path.suffix and (plain := path.with_suffix("")) in kinds:
                both = join_names(map(self.relative_name, (plain, path)))
                why = f"one file packed and unpacked: {both}; remove one of them"
                raise BadData(f"data.source={one_line(self.config.source)}: {why}")

    @property
    def has_rows(self) -> bool:
        """True if documents are rows of tables, False if each is a whole file."""
        return not self.files or self.kinds[self.files[0]].has_rows

    @property
    def splits_inside_documents(self) -> bool:
        """True if the end of each document is held out, False if whole documents are, chosen by a hash of their key."""
        return len(self.split_files.train) < FEW_DOCUMENTS and not self.has_rows

    @property
    def separates_documents(self) -> bool:
        """True if an end-of-text id or a newline ends each document, False for a single text in each split."""
        return self.has_rows or len(self.split_files.train) > 1 or len(self.split_files.val) > 1

    @cached_property
    def parts(self) -> tuple[CorpusPart, ...]:
        """Units of work, in order."""
        if not self.files:
            splits: dict[str, SplitName | None] = {"train": None if len(self.hub_splits) == 1 else "train"}
            return tuple(
                CorpusPart(splits.get(name, "val"), (), name, number)
                for name, count in self.hub_splits
                for number in range(count)
            )
        whole: SplitName | None = "train" if self.split_files.val else None
        train = [CorpusPart(whole, files) for files in group_files(self.split_files.train)]
        return (*train, *(CorpusPart("val", files) for files in group_files(self.split_files.val) if files))

    def text_bytes(self) -> int | None:
        """Return the number of bytes of text, or None if only reading would tell."""
        plain = not self.has_rows and not any(kind.compression for kind in self.kinds.values())
        return sum(map(file_size, self.files)) if plain else None

    def documents(self, number: int, bad_rows: BadRows) -> Iterator[Document]:
        """Yield the documents of one part, always in the same order; rows left out are added to `bad_rows`."""
        part = self.parts[number]
        if not part.files:
            rows = read_hub_rows(self.config, part.hub_split, part.hub_file)
            yield from self.rows_to_documents(str(number), rows, bad_rows)
        root = f"{self.source.root}/" if self.config.source else sysconfig.get_path("stdlib")
        for path in part.files:
            if self.has_rows:
                rows = read_rows(path, self.kinds[path], self.config.text_column)
                yield from self.rows_to_documents(path.name, rows, bad_rows)
            else:  # the key decides the split, so it must not depend on the folder of the source
                yield Document(str(path).removeprefix(root), read_text(path, self.kinds[path].compression))

    def rows_to_documents(self, name: str, rows: Iterator[TextRow], bad_rows: BadRows) -> Iterator[Document]:
        """Yield a document for each row with a text. Raises BadData for a row without, unless it may be skipped."""
        for row in rows:
            if row.text is not None:
                yield Document(f"{name}/{row.number}", row.text)
            elif self.config.on_bad_row == "stop":
                remedy = "data.on_bad_row=skip leaves such rows out"
                column = f"data.text_column={one_line(self.config.text_column)}"
                raise BadData(f"{column}: {one_line(name)}, {row.where}: {one_line(row.problem, 500)}; {remedy}")
            else:
                bad_rows.add(f"{name}, {row.where}: {row.problem}")

    def no_text_error(self, bad_rows: Sequence[str] = ()) -> BadData:
        """Return the error for a source without any text; `bad_rows` are rows that have none."""
        why = f"; no row has a text, e.g. {one_line(bad_rows[0])}" if bad_rows else ""
        return BadData(f"data.source={one_line(self.config.source)}: there is no text in it{why}")

    def all_notes(self) -> list[str]:
        """Return `notes`, and what the contents of the files add."""
        json_lines = [path for path, kind in self.kinds.items() if kind.json_in_text]
        repeated = find_repeated_files(self.files) if self.config.source else []
        about = [] if self.has_rows else [path for path in self.files if README_NAME.match(path.name)]
        found = {
            "read as plain text, though the lines are JSON objects; a name that ends in .jsonl reads rows": json_lines,
            "empty files": self.empty_files(),
            "read though another file holds the same": repeated,
            "read as text like the others": about if len(about) < len(self.files) else [],
        }
        named = {what: join_names(map(self.relative_name, paths)) for what, paths in found.items() if paths}
        return [*self.notes, *(f"{what}: {names}" for what, names in named.items())]

    def empty_files(self) -> set[Path]:
        """Return the local files of no bytes."""
        return {path for path in self.files if not file_size(path)}

    def relative_name(self, path: Path) -> str:
        """Return a file's name relative to the source."""
        return relative_name(path, self.source.root)

    def describe(self) -> dict[str, Any]:
        """Return the source as meta.json records it."""
        about: dict[str, Any] = {"corpus": self.config.corpus, "source": self.config.source}
        if self.config.source_sha256 is not None:
            about["sha256"] = self.config.source_sha256
        if self.config.corpus == "pystdlib":
            about["python"] = platform.python_version()
        if self.config.corpus == "hub":
            about |= {"hub": self.config.hub, "hub_config": self.config.hub_config}
        return about

    def stamp(self) -> str:
        """Return a digest of names, sizes and times of the local files. Raises BadData if one is gone."""
        try:
            lines = [f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in self.files]
        except OSError as error:
            raise BadData(f"{one_line(error.filename)}: {error.strerror}") from None
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def find_corpus(config: DataConfig) -> Corpus:
    """Return the corpus a config names; tiny Shakespeare is downloaded once. Raises BadData, BadEnvironment."""
    if config.source is not None:
        source = find_files(config.source)
        named = divide_by_names(source) if config.split == "auto" else SplitFiles(source.files)
        return Corpus(config, source, named, notes=(*source.notes, *named.notes))
    match config.corpus:
        case "hub":
            used, left_out = find_hub_splits(config)
            notes = (f"left out, splits of the hub: {join_names(left_out)}",) if left_out else ()
            return Corpus(config, LocalFiles(Path(), ()), SplitFiles(()), used, notes)
        case "pystdlib":
            files = list_stdlib_files()
        case "shakespeare":
            target = Path(config.dir) / "downloads" / "tinyshakespeare.txt"
            files = (download_file(SHAKESPEARE_URL, SHAKESPEARE_SHA256, target),)
        case "text":
            raise BadData("data.corpus=text: needs data.source, a file or folder of text")
        case _:
            assert_never(config.corpus)
    return Corpus(config, LocalFiles(Path(), files), SplitFiles(files))


def list_stdlib_files() -> tuple[Path, ...]:
    """Return the source files of Python's standard library that are ASCII and aren't tests. Raises BadData."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
    files = tuple(
        path
        for path in sorted(root.rglob("*.py"))
        if not skipped & set(path.relative_to(root).parts) and read_bytes(path).isascii()
    )
    if len(files) < 100:
        raise BadData(
            f"data=pystdlib: this Python has no library source in {one_line(root)}; "
            "use another data set, e.g. data=text data.source='notes/*.txt' or data=shakespeare_char"
        )
    return files


def group_files(files: tuple[Path, ...]) -> tuple[tuple[Path, ...], ...]:
    """Return files in order, cut into parts of about PART_BYTES."""
    parts: list[list[Path]] = [[]]
    size = 0
    for path in files:
        if size >= PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(path)
        size += file_size(path)
    return tuple(map(tuple, parts))


def find_repeated_files(files: tuple[Path, ...]) -> list[Path]:
    """Return the files that hold what an earlier one holds, except empty ones. Raises BadData."""
    by_size: dict[int, list[Path]] = {}
    for path in files:
        by_size.setdefault(file_size(path), []).append(path)
    repeated: list[Path] = []
    for size, same in by_size.items():
        digests = [file_sha256(path) for path in same] if size and len(same) > 1 else []
        repeated += [path for i, path in enumerate(same) if digests and digests[i] in digests[:i]]
    return repeated


def download_file(url: str, digest: str, target: Path) -> Path:
    """Download a small file unless it exists, check its sha256, and return its path. Raises BadEnvironment, BadData."""
    if not target.exists():
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                content = response.read(16 * 2**20)
        except OSError as error:
            raise BadEnvironment(
                f"can't download {url} ({one_line(error)}); download it elsewhere and give data.source=FILE"
            ) from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise BadData(f"{url}: the content has changed; use a file of your own with data.source=FILE")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(target)
    return target
