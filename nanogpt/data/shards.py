"""Token files on disk, in the format of llm.c: 256 int32 of header, then uint16 or uint32 tokens, little-endian.

header[0] is the magic, header[1] the version, header[2] the number of tokens: 20240520 version 1 holds uint16 (llm.c
and modded-nanogpt, GPT-2), 20240801 version 7 holds uint32 (llm.c, Llama 3). nanoGPT's raw uint16 files are read too.
Reading is by `pread`: a file that was cut gives a message, where a memory map would kill the process with SIGBUS.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from nanogpt.errors import BadData, one_line
from nanogpt.files import open_descriptor, open_regular

HEADER_INTS = 256
HEADER_BYTES = HEADER_INTS * 4
WIDE_PAIRS = 32  # a shorter file is not checked for wider ids
FORMATS = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}
Tokens = npt.NDArray[np.int64]
SplitName = Literal["train", "val"]


def dtype_for(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Return the narrowest token type that holds every id."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


@dataclass(frozen=True)
class Shard:
    """A file of `n_tokens` tokens, the first of them at byte `start`."""

    path: Path
    dtype: np.dtype[np.unsignedinteger]
    start: int
    n_tokens: int

    def read(self, offset: int, count: int, vocab_size: int) -> Tokens:
        """Return tokens [offset, offset + count) as int64 of shape (count,).

        Raises BadData if the file ends early or an id is outside the vocabulary.
        """
        width = self.dtype.itemsize
        try:
            descriptor = open_descriptor(self.path)  # not kept: a data set may have more shards than open files allow
            try:
                data = os.pread(descriptor, count * width, self.start + offset * width)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BadData(f"{one_line(self.path)}: {error.strerror} at token {offset}") from None
        if len(data) != count * width:
            raise BadData(f"{one_line(self.path)}: ends at token {offset + len(data) // width} of {self.n_tokens}")
        tokens = np.frombuffer(data, self.dtype)
        if tokens.size and int(tokens.max()) >= vocab_size:
            first = int(np.argmax(tokens >= vocab_size))
            raise BadData(
                f"{one_line(self.path)}: id {int(tokens[first])} at token {offset + first}, "
                f"but the vocabulary has {vocab_size}"
            )
        return tokens.astype(np.int64)


def open_shard(path: Path) -> Shard:
    """Return a token file: llm.c's, recognised by its header, or nanoGPT's raw uint16. Raises BadData for any other."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise BadData(f"{one_line(path)}: {error.strerror}") from None
    header = np.frombuffer(head[: len(head) // 4 * 4], "<i4")
    dtype = FORMATS.get((int(header[0]), int(header[1]))) if len(header) >= 3 else None
    if dtype is None:
        check_raw_tokens(path, head)
        if size == 0 or size % 2:
            why = f"has {size} bytes, not a multiple of 2" if size else "is empty"
            raise BadData(f"{one_line(path)}: {why}; no llm.c header and not raw uint16 tokens")
        return Shard(path, np.dtype("<u2"), 0, size // 2)
    expected = HEADER_BYTES + int(header[2]) * dtype.itemsize
    if len(header) < HEADER_INTS or size != expected:
        raise BadData(f"{one_line(path)}: has {size} bytes, but its header says {expected}")
    return Shard(path, dtype, HEADER_BYTES, int(header[2]))


def check_raw_tokens(path: Path, head: bytes) -> None:
    """Raise BadData if the beginning of a file without a known header can't be raw uint16 tokens."""
    known = sorted(FORMATS)
    first = int.from_bytes(head[:4], "little")
    if first in dict(known) and len(head) >= 8:
        version = int.from_bytes(head[4:8], "little")
        raise BadData(f"{one_line(path)}: llm.c header {first} of version {version}; allowed: {dict(known)[first]}")
    if head.startswith(b"\x93NUMPY"):
        raise BadData(f"{one_line(path)}: is a NumPy array (.npy); write its tokens alone, as array.tofile does")
    if head.startswith(b"version https://git-lfs"):
        raise BadData(f"{one_line(path)}: is a Git LFS pointer, not the file itself; get it with: git lfs pull")
    ids = np.frombuffer(head[: len(head) // 4 * 4], "<u2").reshape(-1, 2)
    if len(ids) >= WIDE_PAIRS and ids[:, 1].max() <= 1 < ids[:, 0].max() and len(set(ids[:, 0].tolist())) > 2:
        why = "every second token is 0 or 1, so the tokens have 32 or 64 bits"
        raise BadData(f"{one_line(path)}: {why}; write them as uint16, or as uint32 with llm.c's header")


class ShardWriter:
    """Token file written piece by piece; `close` writes the count into the header and syncs the file to disk."""

    def __init__(self, path: Path, dtype: np.dtype[np.unsignedinteger]) -> None:
        self.path, self.dtype, self.n_tokens = path, dtype, 0
        self.file = path.open("wb")
        self.file.write(bytes(HEADER_BYTES))

    def append(self, ids: npt.NDArray[np.unsignedinteger]) -> None:
        self.file.write(ids.astype(self.dtype).tobytes())
        self.n_tokens += len(ids)

    def close(self) -> None:
        magic, version = next(key for key, value in FORMATS.items() if value == self.dtype)
        header = np.zeros(HEADER_INTS, "<i4")
        header[:3] = magic, version, self.n_tokens
        self.file.seek(0)
        self.file.write(header.tobytes())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def file_sha256(path: Path) -> str:
    """Return the digest of a file's content. Raises BadData if it can't be read."""
    digest = hashlib.sha256()
    for block in read_blocks(path, 1 << 20):
        digest.update(block)
    return digest.hexdigest()


def read_blocks(path: Path, size: int) -> Iterator[bytes]:
    """Yield a file's content in blocks of `size` bytes. Raises BadData if it can't be read."""
    try:
        with open_regular(path) as file:
            while block := file.read(size):
                yield block
    except OSError as error:
        raise BadData(f"{one_line(path)}: {error.strerror}") from None
