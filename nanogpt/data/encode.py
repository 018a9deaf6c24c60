"""One part of a corpus becomes shards: here or in a worker process, and recorded when it is safe on disk."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from nanogpt import tokenizer as tokenizers
from nanogpt.data.corpora import Corpus, Document
from nanogpt.data.dataset import ShardMeta, SplitMeta, SplitName
from nanogpt.data.shards import ShardWriter, dtype_for, sha256
from nanogpt.files import write_atomic
from nanogpt.schema import Section, to_json
from nanogpt.tokenizer import Ids, Tokenizer

SHARD_TOKENS = 100_000_000
SPLITS: tuple[SplitName, SplitName] = ("train", "val")


class Part(Section):
    """What one part became; written when its shards are safe on disk."""

    documents: int
    characters: int
    sha256: str
    splits: dict[SplitName, SplitMeta]


def split(corpus: Corpus, document: Document) -> list[tuple[SplitName, str]]:
    """A document's share in each split: all of it in one, or its end in val for running text."""
    fraction = corpus.config.val_fraction
    if corpus.running_text:
        cut = int(len(document.text) * (1 - fraction))
        return [("train", document.text[:cut]), ("val", document.text[cut:])]
    draw = int.from_bytes(hashlib.sha256(document.key.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    return [("val" if draw < fraction * 2**64 else "train", document.text)]


WORKER: dict[str, Any] = {}


def start_worker(corpus: Corpus, spec: dict[str, Any], work: Path, shared: Any) -> None:
    """What every process keeps between parts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its children
    threading.Thread(target=die_with, args=(os.getppid(),), daemon=True).start()
    WORKER.update(corpus=corpus, tokenizer=tokenizers.from_spec(spec), work=work, shared=shared)


def die_with(parent: int) -> None:
    """End this process when its parent is gone: nobody else would, and it must not write beside a new one."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def work_part(number: int) -> None:
    """One part in a worker process; progress goes into shared memory."""
    shared = WORKER["shared"]

    def add(n_bytes: int, n_tokens: int) -> None:
        with shared.get_lock():
            shared[0] += n_bytes
            shared[1] += n_tokens

    encode_part(WORKER["corpus"], WORKER["tokenizer"], WORKER["work"], number, add)


def encode_part(corpus: Corpus, tokenizer: Tokenizer, work: Path, number: int, add: Callable[[int, int], None]) -> None:
    """Tokenise one part into shards and record it."""
    writers = {name: SplitWriter(work, f"{name}_{number:05d}", tokenizer, corpus.separate) for name in SPLITS}
    digest, documents, characters = hashlib.sha256(), 0, 0
    for document in corpus.documents(number):
        encoded = document.text.encode("utf-8", "surrogatepass")
        digest.update(encoded)
        documents, characters = documents + 1, characters + len(document.text)
        n_tokens = sum(writers[name].add(text) for name, text in split(corpus, document) if text)
        add(len(encoded), n_tokens)
    splits: dict[SplitName, SplitMeta] = {name: writers[name].close() for name in SPLITS}
    part = Part(documents=documents, characters=characters, sha256=digest.hexdigest(), splits=splits)
    write_atomic(work / f"part-{number:05d}.json", to_json(part))


def part_digest(corpus: Corpus, number: int) -> str:
    """sha256 of the text of one part."""
    digest = hashlib.sha256()
    for document in corpus.documents(number):
        digest.update(document.text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_part(work: Path, number: int) -> Part | None:
    """The record of a finished part, or None."""
    try:
        return Part.model_validate_json((work / f"part-{number:05d}.json").read_bytes())
    except (OSError, ValidationError):
        return None


class SplitWriter:
    """The shards of one split of one part: a new file after SHARD_TOKENS, none for no tokens."""

    def __init__(self, work: Path, prefix: str, tokenizer: Tokenizer, separate: bool) -> None:
        self.work, self.prefix, self.tokenizer, self.separate = work, prefix, tokenizer, separate
        self.open: ShardWriter | None = None
        self.shards: list[ShardMeta] = []
        self.documents = self.bytes = 0

    def add(self, text: str) -> int:
        """Tokenise a document, end it, write it. Returns its number of tokens."""
        end = self.tokenizer.end_of_text
        if self.separate and end is None and not text.endswith("\n"):
            text += "\n"
        ids = self.tokenizer.encode(text)
        if self.separate and end is not None:
            ids = np.append(ids, np.uint32(end))
        for start in range(0, len(ids), SHARD_TOKENS):
            self.write(ids[start : start + SHARD_TOKENS])
        self.documents += 1
        self.bytes += len(text.encode("utf-8", "surrogatepass"))
        return len(ids)

    def write(self, ids: Ids) -> None:
        """Append to the open shard, and close it when it is full."""
        if self.open is None:
            path = self.work / f"{self.prefix}_{len(self.shards):03d}.bin"
            self.open = ShardWriter(path, dtype_for(len(self.tokenizer.tokens)))
        self.open.append(ids)
        if self.open.n_tokens >= SHARD_TOKENS:
            self.finish_shard()

    def finish_shard(self) -> None:
        if self.open is not None:
            self.open.close()
            path = self.open.path
            self.shards.append(ShardMeta(file=path.name, tokens=self.open.n_tokens, sha256=sha256(path)))
            self.open = None

    def close(self) -> SplitMeta:
        self.finish_shard()
        tokens = sum(shard.tokens for shard in self.shards)
        return SplitMeta(documents=self.documents, bytes=self.bytes, tokens=tokens, shards=self.shards)
