"""Texts as token ids, split between context and continuation where lm-evaluation-harness splits them."""

from collections.abc import Sequence

from nanogpt import tokenizer as tokenizers
from nanogpt.evaluation.scoring import Request
from nanogpt.tokenizer import Tokenizer


def build_request(tokenizer: Tokenizer, context: str, continuations: Sequence[str]) -> Request:
    """Both are encoded as one text, and what follows the ids of the context alone is the continuation.

    Spaces at the end of the context belong to the continuations. A context that is empty is the start of a document
    (`tokenizers.start_ids`: the end of the one before it, else a newline, else the first id). Raises BadInput naming
    characters that the vocabulary lacks.
    """
    kept = context.rstrip()
    before: list[int] = tokenizer.encode(kept).tolist() if kept else []
    wholes = (tokenizer.encode(context + continuation).tolist() for continuation in continuations)
    return Request(before or tokenizers.start_ids(tokenizer), [whole[len(before) :] for whole in wholes])
