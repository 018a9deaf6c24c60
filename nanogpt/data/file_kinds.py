"""Detect format and compression of source files, and open them decompressed.

The endings of the name, in any case, decide how a file is read, and the content must agree. Without a known ending the
content decides.
"""

import bz2
import gzip
import io
import lzma
import shlex
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal, cast

from nanogpt.errors import BadData, BadEnvironment, one_line
from nanogpt.files import open_regular

Format = Literal["text", "json", "jsonl", "csv", "tsv", "parquet", "arrow"]
Compression = Literal["gzip", "bzip2", "xz", "zstd"]

FORMATS: dict[str, Format] = {
    **dict.fromkeys((".txt", ".text", ".md"), "text"),
    ".json": "json",
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".csv": "csv",
    ".tsv": "tsv",
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
}
COMPRESSIONS: dict[str, Compression] = {
    **dict.fromkeys((".gz", ".gzip"), "gzip"),
    ".bz2": "bzip2",
    **dict.fromkeys((".xz", ".lzma"), "xz"),
    **dict.fromkeys((".zst", ".zstd"), "zstd"),
}
COMPRESSION_MAGIC: dict[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    **{b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)},
    b"\xfd7zXZ\0": "xz",
    b"\x5d\0\0": "xz",  # .lzma
    b"\x28\xb5\x2f\xfd": "zstd",
}
FORMAT_MAGIC: dict[bytes, Format] = {b"PAR1\x15": "parquet", b"ARROW1\0\0": "arrow", b"\xff\xff\xff\xff": "arrow"}
POINTERS = {
    b"version https://git-lfs.github.com/spec/": ("a Git LFS pointer", "git lfs pull"),
    b"/annex/objects/": ("a git-annex pointer", "git annex get"),
}
FOREIGN = {
    b"PK\x03\x04": "a zip archive (also .docx, .xlsx, .epub, .npz); unpack it",
    b"%PDF-": "a PDF; extract its text first, e.g. with pdftotext",
    b"\x7fELF": "a program",
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"GIF89a"), "a picture"),
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3\0": "an SQLite database",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!\x1a\x07": "a rar archive; unpack it",
    b"\x04\x22\x4d\x18": "lz4 data; unpack it",
    b"\x1f\x9d": "compress (.Z) data; unpack it",
    b"\x93NUMPY": "a NumPy array",
    b"{\\rtf": "a rich text document; save it as plain text",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office document; save it as plain text",
    b"FEA1": "a Feather file of version 1; write it again as version 2 or parquet",
    b"Obj\x01": "an Avro file; write it as parquet or .jsonl",
}
TAR = (257, b"ustar")
HEAD_BYTES = 4096
UNPACKED_BYTES = 2**16
BOM = b"\xef\xbb\xbf"
WIDE_BOMS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
UNPACKING_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


@dataclass(frozen=True)
class FileKind:
    """Format and compression of a file."""

    format: Format
    compression: Compression | None = None
    json_in_text: bool = False
    """True if the lines are JSON objects, though no ending of the name says so."""

    @property
    def has_rows(self) -> bool:
        """True if the text is in a column of rows, False if the whole file is a document."""
        return self.format != "text"


def kind_from_name(path: Path) -> tuple[Format | None, Compression | None]:
    """Return the format and the compression that the last two endings of a name, None for unknown ones."""
    endings = [ending.casefold() for ending in path.suffixes[-2:]]
    compression = COMPRESSIONS.get(endings[-1]) if endings else None
    if compression:
        endings.pop()
    return FORMATS.get(endings[-1]) if endings else None, compression


def strip_endings(name: str) -> str:
    """Return a file name without the endings of its format and compression; without its last if they are unknown."""
    path = Path(name)
    named_format, compression = kind_from_name(path)
    if compression:
        path = path.with_suffix("")
    return path.stem if named_format or not compression else path.name


def detect_kind(path: Path) -> FileKind:
    """Return format and compression of a file.

    Raises BadData if the content contradicts the name or can't be text: an archive, a picture, a Git LFS pointer,
    UTF-16.
    """
    named_format, named_compression = kind_from_name(path)
    head = read_head(path, None)
    compression = match_magic(COMPRESSION_MAGIC, head)
    if named_compression != compression and named_compression and head:
        check_not_foreign(path, head)
        raise BadData(f"{one_line(path)}: is not {named_compression} data, as its name says")
    if compression:
        head = read_head(path, compression)
        if inner := match_magic(COMPRESSION_MAGIC, head):
            raise BadData(f"{one_line(path)}: is {inner} data inside {compression} data; unpack it once")
    content = match_magic(FORMAT_MAGIC, head)
    if content and named_format in (content, "text", None):
        return FileKind(content, compression)
    if content or named_format in ("parquet", "arrow"):
        check_not_foreign(path, head)
        why = f"its content is {content}" if content else "its content is something else"
        raise BadData(f"{one_line(path)}: is not {named_format}, as its name says: {why if head else 'it is empty'}")
    check_not_foreign(path, head)
    check_not_wide(path, head)
    plain = named_format or "text"
    return FileKind(plain, compression, json_in_text=plain == "text" and holds_json_lines(head))


def match_magic(table: dict[bytes, Any], head: bytes) -> Any:
    """Return the table's value for the bytes that a file begins with, or None."""
    return next((what for magic, what in table.items() if head.startswith(magic)), None)


def check_not_foreign(path: Path, head: bytes) -> None:
    """Raise BadData if the first bytes of a file are those of another format."""
    if pointer := match_magic(POINTERS, head):
        raise BadData(f"{one_line(path)}: is {pointer[0]}, not the file itself; get it with: {pointer[1]}")
    what = match_magic(FOREIGN, head) or ("a tar archive; unpack it" if head[TAR[0] :].startswith(TAR[1]) else None)
    if what:
        raise BadData(f"{one_line(path)}: is {what}; text or rows of text are needed")


def check_not_wide(path: Path, content: bytes) -> None:
    """Raise BadData for UTF-16 and UTF-32, with or without a byte order mark, and for other content with NUL bytes."""
    wide = match_magic(WIDE_BOMS, content)
    null = content.find(b"\0")
    if not wide and null < 0:
        return
    if not wide:
        beginning = content[:HEAD_BYTES]
        odd, even, half = beginning[1::2].count(0), beginning[::2].count(0), len(beginning) // 2
        wide = "UTF-32" if min(odd, even) > 0.4 * half else "UTF-16LE" if odd > even else "UTF-16BE"
        if max(odd, even) < 0.8 * half:
            raise BadData(f"{one_line(path)}: is not text: a NUL at byte {null}")
    raise BadData(f"{one_line(path)}: is {wide} text, UTF-8 is needed; {conversion_command(path, wide)}")


def conversion_command(path: Path, encoding: str) -> str:
    """Return the command that writes a file as UTF-8."""
    return f"convert it: iconv -f {encoding} -t UTF-8 {one_line(shlex.quote(str(path)), 1000)} > NEW"


def holds_json_lines(head: bytes) -> bool:
    """Return whether the first line that isn't blank looks like a JSON object."""
    line = next((line for line in head.removeprefix(BOM).splitlines() if line.strip()), b"").strip()
    return line.startswith((b'{"', b"{ ")) and (line.endswith(b"}") or len(line) > HEAD_BYTES // 2) and b'":' in line


def read_head(path: Path, compression: Compression | None) -> bytes:
    """Return the first bytes of a file's content."""
    with open_content(path, compression) as file:
        return file.read(HEAD_BYTES)


@contextmanager
def open_content(path: Path, compression: Compression | None) -> Generator[IO[bytes], None, None]:
    """Open a file's decompressed content. Raises BadData, also while it is read, if it can't be read or is corrupt."""
    try:
        with open_regular(path) as file, open_unpacked(file, compression) as content:
            yield content
    except UNPACKING_ERRORS as error:
        why = (isinstance(error, OSError) and error.strerror) or one_line(error, 200)
        raise BadData(
            f"{one_line(path)}: can't be read{f' as {compression} data' if compression else ''}: {why}"
        ) from None


def open_unpacked(file: IO[bytes], compression: Compression | None) -> IO[bytes]:
    """Return a stream of the decompressed content. Raises BadEnvironment if a library is missing."""
    match compression:
        case None:
            return file
        case "gzip":
            return cast(IO[bytes], gzip.GzipFile(fileobj=file))
        case "bzip2":
            return cast(IO[bytes], io.BufferedReader(DecompressedStream(file, bz2.BZ2Decompressor)))
        case "xz":
            return cast(IO[bytes], io.BufferedReader(DecompressedStream(file, lzma.LZMADecompressor)))
        case "zstd":
            return cast(IO[bytes], io.BufferedReader(import_pyarrow("zstd data").CompressedInputStream(file, "zstd")))


class DecompressedStream(io.RawIOBase):
    """Content of a file of one or several bzip2 or xz streams.

    Other bytes after a stream are an error here; Python's own readers ignore them silently.
    """

    def __init__(self, file: IO[bytes], decompressor: Callable[[], Any]) -> None:
        self.file, self.decompressor = file, decompressor
        self.inner = decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer and return the number of bytes. Raises OSError, EOFError or LZMAError for corrupt data."""
        data = b""
        while not data:
            block = b""
            if self.inner.eof:
                rest = self.inner.unused_data.lstrip(b"\0")  # xz allows zeros between streams
                while not rest and (block := self.file.read(UNPACKED_BYTES)):
                    rest = block.lstrip(b"\0")
                if not rest:
                    return 0
                block, self.inner = rest, self.decompressor()
            elif self.inner.needs_input and not (block := self.file.read(UNPACKED_BYTES)):
                raise EOFError("it ends before its end mark")
            data = self.inner.decompress(block, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def import_pyarrow(what: str) -> Any:
    """Return the pyarrow library. Raises BadEnvironment that says what needs it."""
    try:
        import pyarrow as library

        import_module("pyarrow.parquet")  # makes it an attribute of the library
    except ImportError:
        raise BadEnvironment(f"reading {what} needs the pyarrow library: pip install pyarrow") from None
    return library
