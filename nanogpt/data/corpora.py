"""Sources of text: the standard library, tiny Shakespeare, the Hugging Face hub, and your own files.

A corpus is a list of parts, each a unit of work that one process can tokenise by itself, and a part yields documents.
Both are found again from the config alone, so a part can be handed to another process by its number.
"""

import hashlib
import platform
import re
import sysconfig
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import assert_never

from nanogpt.config import DataConfig
from nanogpt.data.file_kinds import BOM, FileKind, check_not_wide, conversion_command, detect_kind, open_content
from nanogpt.data.hub_data import find_hub_splits, read_hub_rows
from nanogpt.data.local_files import LocalFiles, file_size, find_files, join_names, relative_name
from nanogpt.data.rows import TextRow, read_rows
from nanogpt.data.shards import SplitName, file_sha256
from nanogpt.data.splits import SplitFiles, divide_by_names
from nanogpt.errors import BadData, BadEnvironment, one_line
from nanogpt.files import read_bytes

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
PART_BYTES = 64 * 2**20  # local files are grouped into parts of about this size
FEW_DOCUMENTS = 50  # below this, each document's end is held out instead of whole documents
BAD_ROWS_NAMED = 3
README_NAME = re.compile(r"(readme|licen[cs]e|copying|notice|authors|changelog|contributing)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """A text and the name that decides its split."""

    key: str
    text: str


@dataclass(frozen=True)
class CorpusPart:
    """A unit of work: local files, or one file of a hub data set."""

    split: SplitName | None
    """The split that all of it belongs to, by the source's own names; None: `data.val_fraction` decides."""
    files: tuple[Path, ...] = ()
    hub_split: str = ""
    hub_file: int = 0


@dataclass
class BadRows:
    """Rows without a text that were left out: how many, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list[str])

    def add(self, where: str) -> None:
        """Record one more."""
        self.count += 1
        if len(self.first) < BAD_ROWS_NAMED:
            self.first.append(where)


@dataclass(frozen=True)
class Corpus:
    """What a config names, found but not read."""

    config: DataConfig
    source: LocalFiles
    """Local files; none for a hub data set."""
    split_files: SplitFiles
    hub_splits: tuple[tuple[str, int], ...] = ()
    """The hub's splits that are used, with their numbers of files."""
    notes: tuple[str, ...] = ()
    """What is left out or read in an unexpected way, as far as names tell; one sentence each."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The local files that are read, in order."""
        return (*self.split_files.train, *self.split_files.val)

    @cached_property
    def kinds(self) -> dict[Path, FileKind]:
        """How each local file is read. Raises BadData for what can't be, and for files of several formats."""
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
        check_no_packed_duplicate(self.config.source, kinds, self.source.root)
        return kinds

    @property
    def has_rows(self) -> bool:
        """Whether documents are rows of tables; else each is a whole file."""
        return not self.files or self.kinds[self.files[0]].has_rows

    @property
    def splits_inside_documents(self) -> bool:
        """Hold out the end of each document, rather than whole documents chosen by a hash of their key."""
        return len(self.split_files.train) < FEW_DOCUMENTS and not self.has_rows

    @property
    def separates_documents(self) -> bool:
        """Documents are ended by the tokenizer's end-of-text id or a newline; False for one text in each split."""
        return self.has_rows or len(self.split_files.train) > 1 or len(self.split_files.val) > 1

    @cached_property
    def parts(self) -> tuple[CorpusPart, ...]:
        """The units of work, in order."""
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

    @property
    def n_parts(self) -> int:
        """The number of units of work."""
        return len(self.parts)

    def text_bytes(self) -> int | None:
        """Return the number of bytes of text, or None where only reading would tell."""
        plain = not self.has_rows and not any(kind.compression for kind in self.kinds.values())
        return sum(map(file_size, self.files)) if plain else None

    def documents(self, number: int, bad_rows: BadRows | None = None) -> Iterator[Document]:
        """Yield the documents of one part, always in the same order; rows left out are added to `bad_rows`."""
        part = self.parts[number]
        if not part.files:
            yield from self.rows_to_documents(
                str(number), read_hub_rows(self.config, part.hub_split, part.hub_file), bad_rows
            )
        elif not self.has_rows:
            root = f"{self.source.root}/" if self.config.source else sysconfig.get_path("stdlib")
            for path in part.files:  # the key decides the split, so it must not depend on where the source lies
                yield Document(str(path).removeprefix(root), read_text(path, self.kinds[path]))
        else:
            for path in part.files:
                rows = read_rows(path, self.kinds[path], self.config.text_column)
                yield from self.rows_to_documents(path.name, rows, bad_rows)

    def rows_to_documents(self, name: str, rows: Iterator[TextRow], bad_rows: BadRows | None) -> Iterator[Document]:
        """Yield a document for each row with a text. Raises BadData at the first without, unless it may be skipped."""
        for row in rows:
            if row.text is not None:
                yield Document(f"{name}/{row.number}", row.text)
            elif self.config.on_bad_row == "stop":
                remedy = "data.on_bad_row=skip leaves such rows out"
                column = f"data.text_column={one_line(self.config.text_column)}"
                raise BadData(f"{column}: {one_line(name)}, {row.where}: {one_line(row.problem, 500)}; {remedy}")
            elif bad_rows is not None:
                bad_rows.add(f"{name}, {row.where}: {row.problem}")

    def all_notes(self) -> list[str]:
        """Return `notes` with what the files' contents add."""
        what = "read as plain text, though the lines are JSON objects; a name that ends in .jsonl reads rows"
        json_lines = [self.relative_name(path) for path, kind in self.kinds.items() if kind.json_in_text]
        empty = [self.relative_name(path) for path in self.empty_files()]
        repeated = [self.relative_name(path) for path in find_repeated_files(self.files)] if self.config.source else []
        about = (
            [] if self.has_rows else [self.relative_name(path) for path in self.files if README_NAME.match(path.name)]
        )
        return [
            *self.notes,
            *([f"{what}: {join_names(json_lines)}"] if json_lines else []),
            *([f"empty files: {join_names(empty)}"] if empty else []),
            *([f"read though another file holds the same: {join_names(repeated)}"] if repeated else []),
            *([f"read as text like the others: {join_names(about)}"] if about and len(about) < len(self.files) else []),
        ]

    def empty_files(self) -> set[Path]:
        """Return the local files of no bytes."""
        return {path for path in self.files if not file_size(path)}

    def relative_name(self, path: Path) -> str:
        """Return a file's name relative to the source."""
        return relative_name(path, self.source.root)

    def describe(self) -> dict[str, Any]:
        """Where the text comes from, for meta.json."""
        about: dict[str, Any] = {"corpus": self.config.corpus, "source": self.config.source}
        if self.config.source_sha256 is not None:
            about["sha256"] = self.config.source_sha256
        if self.config.corpus == "pystdlib":
            about["python"] = platform.python_version()
        if self.config.corpus == "hub":
            about |= {"hub": self.config.hub, "hub_config": self.config.hub_config}
        return about

    def stamp(self) -> str:
        """Names, sizes and times of the local files: changes when one of them does. Raises BadData if one is gone."""
        try:
            lines = [f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in self.files]
        except OSError as error:
            raise BadData(f"{one_line(error.filename)}: {error.strerror}") from None
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def find_corpus(config: DataConfig, cache: Path) -> Corpus:
    """Return the corpus a config names; tiny Shakespeare is downloaded to `cache`. Raises BadData, BadEnvironment."""
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
            files = (download_file(SHAKESPEARE_URL, SHAKESPEARE_SHA256, cache / "tinyshakespeare.txt"),)
        case "text":
            raise BadData("data.corpus=text: needs data.source, a file or folder of text")
        case _:
            assert_never(config.corpus)
    return Corpus(config, LocalFiles(Path(), files), SplitFiles(files))


def list_stdlib_files() -> tuple[Path, ...]:
    """Python's own library source without tests and without what is not ASCII."""
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


def check_no_packed_duplicate(source: str | None, kinds: Mapping[Path, FileKind], root: Path) -> None:
    """Raise BadData for a file that lies beside its packed form: its text would count twice."""
    for path, kind in kinds.items():
        if kind.compression and path.suffix and path.with_suffix("") in kinds:
            both = join_names([relative_name(path.with_suffix(""), root), relative_name(path, root)])
            raise BadData(f"data.source={one_line(source)}: one file packed and unpacked: {both}; remove one of them")


def find_repeated_files(files: tuple[Path, ...]) -> list[Path]:
    """Return the files that hold what an earlier one holds. Empty ones don't count. Raises BadData."""
    by_size: dict[int, list[Path]] = {}
    for path in files:
        by_size.setdefault(file_size(path), []).append(path)
    repeated: list[Path] = []
    for size, same in by_size.items():
        digests = [file_sha256(path) for path in same] if size and len(same) > 1 else []
        repeated += [path for i, path in enumerate(same) if digests and digests[i] in digests[:i]]
    return repeated


def read_text(path: Path, kind: FileKind) -> str:
    """Return a file's text without a byte order mark, with plain line ends. Raises BadData if it isn't UTF-8."""
    with open_content(path, kind.compression) as file:
        content = file.read()
    check_not_wide(path, content)
    try:
        text = content.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        place = error.start + (len(BOM) if content.startswith(BOM) else 0)
        why = f"not UTF-8 text (byte {place}); if it is Latin-1, {conversion_command(path, 'LATIN1')}"
        raise BadData(f"{one_line(path)}: {why}") from None
    return text.replace("\r\n", "\n")


def download_file(url: str, digest: str, to: Path) -> Path:
    """Fetch a small file once and check its sha256. Raises BadEnvironment when it can't be had."""
    if not to.exists():
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                content = response.read(16 * 2**20)
        except OSError as error:
            raise BadEnvironment(
                f"can't download {url} ({one_line(error)}); have the file yourself and name it with data.source=FILE"
            ) from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise BadData(f"{url}: the content is not what it was; name a file of your own with data.source=FILE")
        to.parent.mkdir(parents=True, exist_ok=True)
        partial = to.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(to)
    return to
