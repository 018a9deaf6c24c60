"""Identify text and token files by what they hold, wherever they lie and however their path is written.

The digest of a source stands for its path in a run's identity and in the name of the prepared folder. What was found
out about large files is remembered in the data folder by real path, size, time of writing and time of any change (which
`cp -p` and `touch` can't set), so that the next start doesn't read them again.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt import tokenizer as tokenizers
from nanogpt.config import DataConfig
from nanogpt.data import corpora
from nanogpt.data.shards import Shard, file_sha256, open_shard
from nanogpt.errors import BadData, one_line
from nanogpt.files import hold_lock, open_regular, read_json_bytes, write_atomic

CACHE_FILE = ".digests.json"
REMEMBER_BYTES = 2**25  # smaller files are read again: that takes no time
SETTLED_SECONDS = 2.0  # a file that was changed later than this ago may change again within one tick of its clock
BLOCK_TOKENS = 2**22


@dataclass(frozen=True)
class FileFacts:
    """What reading a whole file found."""

    sha256: str
    largest_id: int = -1
    """The largest token id in a token file; -1 in other files."""


class DigestCache:
    """Facts of large files, remembered under `folder` by real path, size and times."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CACHE_FILE
        self.entries = read_cache(self.path)
        self.new_entries: dict[str, list[Any]] = {}

    def read(self, file: Path, shard: Shard | None = None) -> FileFacts:
        """Return the facts of a file, read in full unless they are remembered. Raises BadData."""
        try:
            about, key = file.stat(), os.path.realpath(file)
        except OSError as error:
            raise BadData(f"{one_line(file)}: {error.strerror}") from None
        kind = "text" if shard is None else shard.dtype.str
        stamp = [kind, about.st_size, about.st_mtime_ns, about.st_ctime_ns]
        known = self.entries.get(key)
        if known is not None and known[:4] == stamp:
            return FileFacts(*known[4:])
        facts = FileFacts(file_sha256(file)) if shard is None else scan_tokens(shard)
        if about.st_size >= REMEMBER_BYTES and time.time() - max(about.st_mtime, about.st_ctime) > SETTLED_SECONDS:
            self.new_entries[key] = [*stamp, facts.sha256, facts.largest_id]
        return facts

    def save(self) -> None:
        """Write what is new beside what other processes wrote meanwhile; a folder that can't be written stays."""
        if not self.new_entries:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with hold_lock(self.path.with_name(f"{CACHE_FILE}.lock"), wait=True):
                write_atomic(self.path, json.dumps(read_cache(self.path) | self.new_entries, indent=1) + "\n")


def read_cache(path: Path) -> dict[str, list[Any]]:
    """Return what is remembered, by real path: kind, size, times of writing and change, sha256, largest id."""
    try:
        known: Any = read_json_bytes(path)
    except (OSError, ValueError):
        return {}
    kinds = (str, int, int, int, str, int)
    return {
        str(key): entry
        for key, entry in (known.items() if isinstance(known, dict) else ())
        if isinstance(entry, list) and len(entry) == len(kinds) and all(map(isinstance, entry, kinds))
    }


def scan_tokens(shard: Shard) -> FileFacts:
    """Return digest and largest id of a token file, in one pass over it. Raises BadData."""
    digest, largest = hashlib.sha256(), -1
    try:
        with open_regular(shard.path) as file:
            digest.update(file.read(shard.start))
            while block := file.read(BLOCK_TOKENS * shard.dtype.itemsize):
                digest.update(block)
                whole = len(block) // shard.dtype.itemsize * shard.dtype.itemsize
                if whole:
                    largest = max(largest, int(np.frombuffer(block[:whole], shard.dtype).max()))
    except OSError as error:
        raise BadData(f"{one_line(shard.path)}: {error.strerror}") from None
    return FileFacts(digest.hexdigest(), largest)


def check_ids(shard: Shard, facts: FileFacts, vocab_size: int) -> None:
    """Raise BadData naming file, id and offset of the first id that the vocabulary doesn't have."""
    if facts.largest_id >= vocab_size:
        for offset in range(0, shard.n_tokens, BLOCK_TOKENS):
            shard.read(offset, min(BLOCK_TOKENS, shard.n_tokens - offset), vocab_size)


def is_token_folder(source: str | None) -> bool:
    """Whether `data.source` is a folder that holds .bin files."""
    return source is not None and os.path.isdir(source) and any(Path(source).glob("*.bin"))


def compute_source_digest(config: DataConfig, remember: bool = True) -> str | None:
    """Return the digest of what the source holds; None where it isn't there or can't be read.

    Each file counts with its path below the source, which decides order and split; the name of a single text file
    decides nothing and doesn't count.
    """
    memory = DigestCache(Path(config.dir))
    try:
        lines = token_file_digests(Path(str(config.source)), memory) if is_token_folder(config.source) else None
        lines = text_file_digests(config, memory) if lines is None else lines
    except (BadData, OSError):
        return None
    if remember:
        memory.save()
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def token_file_digests(folder: Path, memory: DigestCache) -> list[list[str]]:
    """Return name and digest of each token file of a folder and of its tokenizer. Raises BadData."""
    lines = [[path.name, memory.read(path, open_shard(path)).sha256] for path in sorted(folder.glob("*.bin"))]
    tokenizer = folder / tokenizers.FILE
    return [*lines, [tokenizer.name, memory.read(tokenizer).sha256]] if tokenizer.exists() else lines


def text_file_digests(config: DataConfig, memory: DigestCache) -> list[list[str]]:
    """Return name and digest of each file of a text source, in order. Raises BadData."""
    corpus = corpora.find_corpus(config, cache=Path(config.dir) / "downloads")
    nameless = len(corpus.files) == 1 and not corpus.has_rows
    return [["" if nameless else corpus.relative_name(path), memory.read(path).sha256] for path in corpus.files]


def with_source_digest(config: DataConfig, remember: bool = True) -> DataConfig:
    """Return the config with `source_sha256` filled in; as it is where the source isn't there or there is none."""
    if config.source is None or config.source_sha256 is not None:
        return config
    digest = compute_source_digest(config, remember)
    return config if digest is None else config.model_copy(update={"source_sha256": digest})
