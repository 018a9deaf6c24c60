"""Tokenize one part of a corpus into shards, in this process or a worker, and record it when they are on disk."""

import hashlib
import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from nanogpt import tokenizer as tokenizers
from nanogpt.child_process import exit_with_parent
from nanogpt.config import DataConfig
from nanogpt.data.corpora import BadRows, Corpus, Document
from nanogpt.data.dataset import ShardMeta, SplitMeta, SplitName
from nanogpt.data.shards import ShardWriter, dtype_for, file_sha256
from nanogpt.files import read_bytes, write_atomic
from nanogpt.schema import ConfigModel, to_json
from nanogpt.tokenizer import END_OF_TEXT, Ids, Tokenizer

SHARD_TOKENS = 100_000_000
SPLITS: tuple[SplitName, SplitName] = ("train", "val")


class EncodedPart(ConfigModel):
    """Record of a tokenized part; written when its shards are on disk."""

    documents: int
    characters: int
    sha256: str
    splits: dict[SplitName, SplitMeta]
    has_text: bool
    """True unless the text is only white space."""
    separators: int
    """Number of occurrences of `data.separator`."""
    plain_end_of_text: int
    """Number of `<|endoftext|>` in the text that stay plain text."""
    bad_rows: int
    first_bad_rows: list[str]


def resolve_separator(config: DataConfig, has_end_of_text: bool) -> str:
    """Return the text that ends a document in the source, or ""."""
    if config.separator is None:
        return END_OF_TEXT if has_end_of_text else ""
    return config.separator.replace("\\n", "\n").replace("\\t", "\t")


def split_document(corpus: Corpus, number: int, document: Document, separator: str) -> list[tuple[SplitName, str]]:
    """Return a document's text in each split: all of it in one split, or its end in val."""
    fraction, named = corpus.config.val_fraction, corpus.parts[number].split
    if named is not None:
        return [(named, document.text)]
    if corpus.splits_inside_documents:
        cut = find_cut(document.text, int(len(document.text) * (1 - fraction)), separator)
        return [("train", document.text[:cut]), ("val", document.text[cut:])]
    key = document.key.encode("utf-8", "surrogateescape")
    draw = int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
    return [("val" if draw < fraction * 2**64 else "train", document.text)]


def find_cut(text: str, cut: int, separator: str) -> int:
    """Return the position at which a text is cut: `cut`, or the end of the separator that it falls into."""
    before = text.rfind(separator, max(0, cut - len(separator) + 1), cut + len(separator) - 1) if separator else -1
    return before + len(separator) if 0 <= before < cut < before + len(separator) else cut


WORKER_STATE: dict[str, Any] = {}


def start_worker(corpus: Corpus, spec: dict[str, Any], work: Path, shared: Any) -> None:
    """Initialize a worker process: keep what all its parts need."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives Ctrl-C too and ends its workers
    threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()
    WORKER_STATE.update(corpus=corpus, tokenizer=tokenizers.from_spec(spec), work=work, shared=shared)


def encode_part_in_worker(number: int) -> None:
    """Tokenize a part in a worker process; progress is added in shared memory."""
    shared = WORKER_STATE["shared"]

    def add(n_bytes: int, n_tokens: int) -> None:
        with shared.get_lock():
            shared[0] += n_bytes
            shared[1] += n_tokens

    encode_part(WORKER_STATE["corpus"], WORKER_STATE["tokenizer"], WORKER_STATE["work"], number, add)


def encode_part(corpus: Corpus, tokenizer: Tokenizer, work: Path, number: int, add: Callable[[int, int], None]) -> None:
    """Tokenize a part into shards and record it; `add` receives the bytes and tokens of each document."""
    separator = resolve_separator(corpus.config, tokenizer.end_of_text is not None)
    digest, documents, characters, bad_rows = hashlib.sha256(), 0, 0, BadRows()
    has_text, plain = False, 0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                closing(SplitWriter(work, f"{name}_{number:05d}", tokenizer, corpus.separates_documents, separator))
            )
            for name in SPLITS
        }
        for document in corpus.documents(number, bad_rows):
            encoded = document.text.encode("utf-8", "surrogatepass")
            digest.update(encoded)
            documents, characters = documents + 1, characters + len(document.text)
            has_text = has_text or bool(document.text.strip())
            if separator != END_OF_TEXT:
                pieces = document.text.split(separator) if separator else [document.text]
                plain += sum(piece.count(END_OF_TEXT) for piece in pieces)
            texts = split_document(corpus, number, document, separator)
            add(len(encoded), sum(writers[name].add(text) for name, text in texts if text))
        splits: dict[SplitName, SplitMeta] = {name: writers[name].finish() for name in SPLITS}
    part = EncodedPart(
        documents=documents,
        characters=characters,
        sha256=digest.hexdigest(),
        splits=splits,
        has_text=has_text,
        separators=sum(writer.separators for writer in writers.values()),
        plain_end_of_text=plain,
        bad_rows=bad_rows.count,
        first_bad_rows=bad_rows.first,
    )
    write_atomic(work / f"part-{number:05d}.json", to_json(part))


def compute_part_digest(corpus: Corpus, number: int) -> str:
    """Return the sha256 of the text of a part."""
    digest = hashlib.sha256()
    for document in corpus.documents(number, BadRows()):
        digest.update(document.text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_part(work: Path, number: int) -> EncodedPart | None:
    """Return the record of a finished part, or None."""
    try:
        return EncodedPart.model_validate_json(read_bytes(work / f"part-{number:05d}.json"))
    except (OSError, ValidationError):
        return None


class SplitWriter:
    """Writes the shards of one split of one part, of SHARD_TOKENS each; no file if there are no tokens."""

    def __init__(self, work: Path, prefix: str, tokenizer: Tokenizer, separate: bool, separator: str) -> None:
        self.work, self.prefix, self.tokenizer, self.separate = work, prefix, tokenizer, separate
        self.separator, self.separators = separator, 0
        self.shard: ShardWriter | None = None
        self.shards: list[ShardMeta] = []
        self.documents = self.bytes = self.n_end_of_text = 0

    def add(self, text: str) -> int:
        """Tokenize a document, end it, write it, and return its number of tokens."""
        pieces = text.split(self.separator) if self.separator else [text]
        self.separators += len(pieces) - 1
        end = self.tokenizer.end_of_text
        if end is None:
            text = "".join([*(ensure_newline(piece) for piece in pieces[:-1]), pieces[-1]])
            text = ensure_newline(text) if self.separate else text
            ids = self.tokenizer.encode(text)
        else:
            text = "".join(pieces)
            ids = join_with(end, [self.tokenizer.encode(piece) for piece in pieces])
            if self.separate and not (len(ids) and ids[-1] == end):
                ids = np.append(ids, np.uint32(end))
            self.n_end_of_text += int((ids == end).sum())
        for start in range(0, len(ids), SHARD_TOKENS):
            self.write(ids[start : start + SHARD_TOKENS])
        self.documents += 1
        self.bytes += len(text.encode("utf-8", "surrogatepass"))
        return len(ids)

    def write(self, ids: Ids) -> None:
        """Append to the open shard; close it when it is full."""
        if self.shard is None:
            path = self.work / f"{self.prefix}_{len(self.shards):03d}.bin"
            self.shard = ShardWriter(path, dtype_for(len(self.tokenizer.tokens)))
        self.shard.append(ids)
        if self.shard.n_tokens >= SHARD_TOKENS:
            self.finish_shard()

    def finish_shard(self) -> None:
        if self.shard is not None:
            self.shard.close()
            path = self.shard.path
            self.shards.append(ShardMeta(file=path.name, tokens=self.shard.n_tokens, sha256=file_sha256(path)))
            self.shard = None

    def close(self) -> None:
        """Close the shard that is open after an error."""
        if self.shard is not None:
            self.shard.file.close()

    def finish(self) -> SplitMeta:
        """Close the last shard and return the record of all."""
        self.finish_shard()
        return SplitMeta(
            documents=self.documents,
            bytes=self.bytes,
            tokens=sum(shard.tokens for shard in self.shards),
            shards=self.shards,
            end_of_text=self.n_end_of_text,
        )


def ensure_newline(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def join_with(end: int, pieces: list[Ids]) -> Ids:
    """Return the ids of all pieces, joined by the id `end`."""
    between = np.array([end], np.uint32)
    return np.concatenate([part for piece in pieces for part in (between, piece)][1:])
