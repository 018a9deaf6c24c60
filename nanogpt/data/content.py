"""Identify text and token files by their content, independent of where they are stored.

The digest of a source replaces its path in a run's identity and in the name of the prepared folder. Digests of large
files are cached in the data folder by real path, size, modification time and change time (which `cp -p` and `touch`
can't set), so that the next start doesn't read them again.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanogpt import tokenizer as tokenizers
from nanogpt.config import DataConfig
from nanogpt.data.corpora import find_corpus
from nanogpt.data.shards import Shard, file_sha256, open_shard, read_blocks
from nanogpt.errors import BadData, one_line
from nanogpt.files import hold_lock, read_json_object, write_atomic

CACHE_FILE = ".digests.json"
REMEMBER_BYTES = 2**25  # smaller files are read again, which takes no time
SETTLED_SECONDS = 2.0  # a file changed more recently may change again without a new time stamp
BLOCK_TOKENS = 2**22


class FileFacts(NamedTuple):
    """Facts that need a whole file to be read."""

    sha256: str
    largest_id: int = -1
    """Largest token id in a token file; -1 in other files."""


class DigestCache:
    """Facts of large files, cached under `folder` by real path, size and times."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CACHE_FILE
        self.entries = read_cache(self.path)
        self.new_entries: dict[str, list[Any]] = {}

    def read(self, file: Path, shard: Shard | None = None) -> FileFacts:
        """Return the facts of a file, read in full unless they are cached. Raises BadData."""
        try:
            stat, key = file.stat(), os.path.realpath(file)
        except OSError as error:
            raise BadData(f"{one_line(file)}: {error.strerror}") from None
        kind = "text" if shard is None else shard.dtype.str
        stamp = [kind, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        cached = self.entries.get(key)
        if cached is not None and cached[:4] == stamp:
            return FileFacts(*cached[4:])
        facts = FileFacts(file_sha256(file)) if shard is None else scan_tokens(shard)
        if stat.st_size >= REMEMBER_BYTES and time.time() - max(stat.st_mtime, stat.st_ctime) > SETTLED_SECONDS:
            self.new_entries[key] = [*stamp, *facts]
        return facts

    def save(self) -> None:
        """Add the new entries to the file, which other processes may have changed; ignore a read-only folder."""
        if not self.new_entries:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with hold_lock(self.path.with_name(f"{CACHE_FILE}.lock"), wait=True):
                write_atomic(self.path, json.dumps(read_cache(self.path) | self.new_entries, indent=1) + "\n")


def read_cache(path: Path) -> dict[str, list[Any]]:
    """Return the valid entries by real path: kind, size, modification and change time, sha256, largest id."""
    kinds = (str, int, int, int, str, int)
    return {
        key: entry
        for key, entry in read_json_object(path).items()
        if isinstance(entry, list) and len(entry) == len(kinds) and all(map(isinstance, entry, kinds))
    }


def scan_tokens(shard: Shard) -> FileFacts:
    """Return digest and largest id of a token file, in one pass over it. Raises BadData."""
    digest, largest, start = hashlib.sha256(), -1, shard.start
    for block in read_blocks(shard.path, BLOCK_TOKENS * shard.dtype.itemsize):
        digest.update(block)
        if (count := (len(block) - start) // shard.dtype.itemsize) > 0:
            largest = max(largest, int(np.frombuffer(block, shard.dtype, count, start).max()))
        start = 0
    return FileFacts(digest.hexdigest(), largest)


def check_ids(shard: Shard, facts: FileFacts, vocab_size: int) -> None:
    """Raise BadData naming file, id and offset of the first id outside the vocabulary."""
    if facts.largest_id >= vocab_size:
        for offset in range(0, shard.n_tokens, BLOCK_TOKENS):
            shard.read(offset, min(BLOCK_TOKENS, shard.n_tokens - offset), vocab_size)


def token_folder(config: DataConfig) -> Path | None:
    """Return `data.source` if it is a folder with .bin files, else None."""
    folder = Path(config.source or "")
    return folder if config.source and os.path.isdir(folder) and any(folder.glob("*.bin")) else None


def compute_source_digest(config: DataConfig, remember: bool = True) -> str | None:
    """Return the digest of the content of `data.source`, or None if it doesn't exist or can't be read.

    Each file counts with its path below the source, which decides order and split. The name of a single text file
    decides nothing and doesn't count.
    """
    cache = DigestCache(Path(config.dir))
    try:
        if folder := token_folder(config):
            lines = [[path.name, cache.read(path, open_shard(path)).sha256] for path in sorted(folder.glob("*.bin"))]
            if (tokenizer := folder / tokenizers.FILE).exists():
                lines.append([tokenizer.name, cache.read(tokenizer).sha256])
        else:
            corpus = find_corpus(config)
            nameless = len(corpus.files) == 1 and not corpus.has_rows
            lines = [["" if nameless else corpus.relative_name(path), cache.read(path).sha256] for path in corpus.files]
    except (BadData, OSError):
        return None
    if remember:
        cache.save()
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()
