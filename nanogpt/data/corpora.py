"""Sources of text: the standard library, tiny Shakespeare, the Hugging Face hub, and your own files.

A corpus is a list of parts, each a unit of work that one process can tokenise by itself, and a part yields documents.
Both are found again from the config alone, so a part can be handed to another process by its number.
"""

import glob
import hashlib
import platform
import sysconfig
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt.config import DataConfig
from nanogpt.errors import BadData, BadEnvironment, escaped
from nanogpt.hub import refuse_silence

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TABLES = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
PART_BYTES = 64 * 2**20  # plain text files are grouped into parts of about this size
FEW_DOCUMENTS = 50  # below this, each document's end is held out instead of whole documents


@dataclass(frozen=True)
class Document:
    """A text and the name that decides its split."""

    key: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """What a config names, found but not read."""

    config: DataConfig
    parts: tuple[tuple[Path, ...], ...]
    """Local files, in order and in groups; for a hub data set one empty group for each of its files."""
    running_text: bool
    """Hold out the end of each document, rather than whole documents chosen by a hash of their key."""
    separate: bool
    """Documents are ended by the tokenizer's end-of-text id or a newline; False for one single text."""

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for part in self.parts for path in part)

    @property
    def n_parts(self) -> int:
        return len(self.parts)

    def documents(self, part: int) -> Iterator[Document]:
        """The documents of one part, always in the same order."""
        if (self.config.corpus == "hub" and not self.files) or is_table(self.files):
            return table_rows(self.config, self.parts[part], part)
        root = sysconfig.get_path("stdlib") if self.config.corpus == "pystdlib" else ""
        return text_files(self.parts[part], root)

    def describe(self) -> dict[str, Any]:
        """Where the text comes from, for meta.json."""
        about: dict[str, Any] = {"corpus": self.config.corpus, "source": self.config.source}
        if self.config.corpus == "pystdlib":
            about["python"] = platform.python_version()
        if self.config.corpus == "hub":
            about |= {"hub": self.config.hub, "hub_config": self.config.hub_config}
        return about

    def stamp(self) -> str:
        """Names, sizes and times of the local files: changes when one of them does."""
        lines = (f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in self.files)
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def find(config: DataConfig, cache: Path) -> Corpus:
    """The corpus a config names; tiny Shakespeare is downloaded to `cache`. Raises BadData or BadEnvironment."""
    if config.source is not None:
        files = local_files(config.source)
    elif config.corpus == "pystdlib":
        files = standard_library()
    elif config.corpus == "shakespeare":
        files = (download(SHAKESPEARE_URL, SHAKESPEARE_SHA256, cache / "tinyshakespeare.txt"),)
    else:
        return Corpus(config, ((),) * hub_parts(config), running_text=False, separate=True)
    few = len(files) < FEW_DOCUMENTS and not is_table(files)
    return Corpus(config, groups(files), running_text=few, separate=len(files) > 1 or is_table(files))


def local_files(source: str) -> tuple[Path, ...]:
    """The files that a path, a folder or a glob names, sorted."""
    path = Path(source).expanduser()
    if path.is_dir():
        inside = (one for one in path.rglob("*") if one.is_file())
        found = [one for one in inside if not any(part.startswith(".") for part in one.relative_to(path).parts)]
    else:
        found = [path] if path.is_file() else [Path(one) for one in glob.glob(str(path), recursive=True)]
    files = tuple(sorted(one for one in found if one.is_file()))
    if not files:
        raise BadData(f"data.source={escaped(source)}: no such file")
    return files


def standard_library() -> tuple[Path, ...]:
    """Python's own library source without tests and without what is not ASCII."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
    files = tuple(
        path
        for path in sorted(root.rglob("*.py"))
        if not skipped & set(path.relative_to(root).parts) and path.read_bytes().isascii()
    )
    if len(files) < 100:
        raise BadData(
            f"data=pystdlib: this Python has no library source in {escaped(root)}; "
            "use another data set, e.g. data=text data.source='notes/*.txt' or data=shakespeare_char"
        )
    return files


def is_table(files: tuple[Path, ...]) -> bool:
    """Whether the files are parquet or JSON lines, with the text in a column."""
    return bool(files) and all(path.suffix in TABLES for path in files)


def groups(files: tuple[Path, ...]) -> tuple[tuple[Path, ...], ...]:
    """Files in order, cut into parts of about PART_BYTES."""
    parts: list[list[Path]] = [[]]
    size = 0
    for path in files:
        if size >= PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(path)
        size += path.stat().st_size
    return tuple(map(tuple, parts))


def text_files(paths: tuple[Path, ...], root: str) -> Iterator[Document]:
    """Each file as one document named by its path below `root`."""
    for path in paths:
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadData(f"{escaped(path)}: not UTF-8 text (byte {error.start}); iconv converts it") from None
        except OSError as error:
            raise BadData(f"{escaped(path)}: {error.strerror}") from None
        yield Document(str(path).removeprefix(root), text.replace("\r\n", "\n"))


def table_rows(config: DataConfig, files: tuple[Path, ...], part: int) -> Iterator[Document]:
    """The rows of some local tables, or of one file of a hub data set, streamed."""
    if files:
        streams = ((path.name, load_stream(TABLES[path.suffix], data_files=str(path))) for path in files)
    else:
        stream = load_stream(str(config.hub), name=config.hub_config)
        whole = int(stream.num_shards)
        streams = iter([(str(part), stream.shard(num_shards=whole, index=part) if whole > 1 else stream)])
    for name, stream in streams:
        for place, row in enumerate(rows_of(name, stream)):
            text = row.get(config.text_column)
            if not isinstance(text, str):
                columns = ", ".join(map(str, row))
                why = f"no text in row {place} of {name}; the columns are {columns}"
                raise BadData(f"data.text_column={config.text_column}: {why}")
            yield Document(f"{name}/{place}", text)


def rows_of(name: str, stream: Any) -> Iterator[dict[str, Any]]:
    """The rows of a stream. Raises BadEnvironment when the network, and BadData when the content fails."""
    try:
        yield from stream
    except OSError as error:
        raise BadEnvironment(f"{name}: {escaped(error, 200)}; the same command continues") from None
    except Exception as error:  # the reader's own: a broken line, a foreign file
        raise BadData(f"{name}: can't be read: {type(error).__name__}: {escaped(error, 200)}") from None


def hub_parts(config: DataConfig) -> int:
    """How many files a hub data set has."""
    return max(1, int(load_stream(str(config.hub), name=config.hub_config).num_shards))


def load_stream(
    path: str, split: str = "train", remedy: str = "use local files with data.source='…/*.parquet'", **arguments: Any
) -> Any:
    """A streaming `datasets` data set. Raises BadEnvironment when the library or the hub can't be reached."""
    try:
        import datasets
    except ImportError:
        raise BadEnvironment("this data set needs the 'datasets' library: pip install 'datasets>=4'") from None
    try:
        if path not in TABLES.values() and not Path(path).exists():
            refuse_silence()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what fails is told in our words
        return datasets.load_dataset(path, split=split, streaming=True, **arguments)
    except Exception as error:  # the hub client raises its own, requests' and the system's
        why = escaped(f"{type(error).__name__}: {error}", 200)
        if path in TABLES.values():
            raise BadData(f"{escaped(arguments['data_files'])}: can't be read: {why}") from None
        raise BadEnvironment(f"{escaped(path)}: {why}; {remedy}") from None


def download(url: str, digest: str, to: Path) -> Path:
    """Fetch a small file once and check its sha256. Raises BadEnvironment when it can't be had."""
    if not to.exists():
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                content = response.read(16 * 2**20)
        except OSError as error:
            raise BadEnvironment(
                f"can't download {url} ({escaped(error)}); have the file yourself and name it with data.source=FILE"
            ) from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise BadData(f"{url}: the content is not what it was; name a file of your own with data.source=FILE")
        to.parent.mkdir(parents=True, exist_ok=True)
        partial = to.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(to)
    return to
