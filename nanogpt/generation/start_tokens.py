"""Choose the token from which a text without a prompt starts."""

from nanogpt.data.dataset import Split
from nanogpt.tokenizer import Tokenizer

TOKENS_READ = 2**20


def find_start_ids(tokenizer: Tokenizer, train: Split) -> list[int]:
    """Return the end-of-text id if the training split has it, else the newline if it has that, else its first id.

    The first million tokens and the last one are searched: documents, if separated at all, end with that id.
    """
    first = train.read(0, 0, min(TOKENS_READ, train.shard_tokens[0]))
    last = len(train.shards) - 1
    end = tokenizer.end_of_text
    if end is not None and ((first == end).any() or train.read(last, train.shard_tokens[last] - 1, 1)[0] == end):
        return [end]
    if b"\n" in tokenizer.tokens and (first == (newline := tokenizer.tokens.index(b"\n"))).any():
        return [newline]
    return [int(first[0])]
