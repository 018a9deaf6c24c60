"""Digest of a split's text, independent of its tokenizer."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from nanogpt.data.dataset import Split
from nanogpt.data.shards import Tokens
from nanogpt.tokenizer import Tokenizer

BLOCK = 2**20  # tokens decoded at once
MOST_TOKENS = 50_000_000  # decoding takes about five seconds; larger splits get no digest


class TextDigest(NamedTuple):
    """Digest and size of a text, normalised as `compute_text_digest` says."""

    sha256: str
    bytes: int


def compute_text_digest(split: Split, tokenizer: Tokenizer) -> TextDigest | None:
    """Return the digest of a split's text, or None if the split has more than MOST_TOKENS tokens.

    Token files end documents with the end-of-text id or with a newline. Here a newline is added to each document that
    doesn't end with one, so that the same documents give the same digest.
    """
    if split.n_tokens > MOST_TOKENS:
        return None
    digest, n_bytes, ended = hashlib.sha256(), 0, True
    for piece, is_end in decode_documents(split, tokenizer):
        if piece:
            ended = piece.endswith(b"\n")
        if is_end and not ended:
            piece, ended = piece + b"\n", True
        digest.update(piece)
        n_bytes += len(piece)
    return TextDigest(digest.hexdigest(), n_bytes)


def decode_documents(split: Split, tokenizer: Tokenizer) -> Iterator[tuple[bytes, bool]]:
    """Yield (text, True if a document ends after it), in the order of the split."""
    for ids in read_token_blocks(split):
        start = 0
        ends = [] if tokenizer.end_of_text is None else np.flatnonzero(ids == tokenizer.end_of_text).tolist()
        for end in ends:
            yield decode_block(tokenizer, ids[start:end]), True
            start = end + 1
        yield decode_block(tokenizer, ids[start:]), False
    yield b"", True


def read_token_blocks(split: Split) -> Iterator[Tokens]:
    """Yield all ids of a split in blocks of at most BLOCK."""
    for number, count in enumerate(split.shard_tokens):
        for offset in range(0, count, BLOCK):
            yield split.read(number, offset, min(BLOCK, count - offset))


def decode_block(tokenizer: Tokenizer, ids: Tokens) -> bytes:
    return b"".join(map(tokenizer.tokens.__getitem__, ids.tolist()))
