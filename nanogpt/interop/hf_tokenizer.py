"""Tokenizers as Hugging Face's `tokenizers` library stores them in tokenizer.json: ours written so, and theirs read.

Written: byte-level BPE (ours, GPT-2's, and plain bytes as one without merges) and characters. Read: the same.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from nanogpt import tokenizer as tokenizers
from nanogpt.errors import BadData, escaped
from nanogpt.files import read_json_bytes, write
from nanogpt.interop.tokenizer_checks import check_byte_level, check_config
from nanogpt.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    byte_alphabet,
)


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in a folder's tokenizer.json, ours or Hugging Face's; None without one. Raises BadData."""
    path = folder / tokenizers.FILE
    if not path.exists():
        return None
    try:
        content: Any = read_json_bytes(path)
        if "kind" in content:
            return tokenizers.load(folder)
        if content["model"]["type"] == "WordLevel":
            vocabulary: dict[str, int] = content["model"]["vocab"]
            tokenizer = CharTokenizer("".join(vocabulary))
            if [vocabulary[char] for char in tokenizer.chars] != list(range(len(vocabulary))):
                raise BadData(f"{escaped(path)}: its characters are not in code point order")
            return tokenizer
        return read_byte_level(content, folder)
    except BadData:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise BadData(f"{escaped(path)}: not a tokenizer of characters or byte-level BPE: {escaped(error)}") from None


def read_byte_level(content: dict[str, Any], folder: Path) -> Tokenizer:
    """Return a byte-level BPE whose ids are transformers'. Raises BadData naming what would change a text."""
    where, config = escaped(folder / tokenizers.FILE), folder / "tokenizer_config.json"
    check_byte_level(content, where)
    added = {token["content"]: token for token in content.get("added_tokens") or ()}
    if config.exists():
        check_config(read_json_bytes(config), added, escaped(config))
    tokenizer = BPETokenizer(json.dumps(content | {"truncation": None, "padding": None}))
    if missing := {bytes([value]) for value in range(256)} - set(tokenizer.tokens):
        raise BadData(f"{where}: has no token for the byte {min(missing)[0]}, so some characters would be lost")
    if tokenizer.inner.encode("a b").ids != tokenizer.inner.encode("a b", add_special_tokens=False).ids:
        raise BadData(f"{where}: post_processor: adds tokens to every text, which isn't done here")
    plain = ByteTokenizer()
    return plain if tokenizer.tokens == plain.tokens and not content["model"]["merges"] else tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """tokenizer.json and tokenizer_config.json, as AutoTokenizer reads them."""
    write(folder / tokenizers.FILE, serialized(tokenizer))
    about: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.end_of_text is not None:
        about |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    write(folder / "tokenizer_config.json", json.dumps(about, indent=2) + "\n")


def serialized(tokenizer: Tokenizer) -> str:
    """The text of tokenizer.json."""
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.serialized
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as HFTokenizer

    if isinstance(tokenizer, CharTokenizer):
        inner = HFTokenizer(models.WordLevel({char: i for i, char in enumerate(tokenizer.chars)}, unk_token=""))
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        inner.decoder = decoders.Fuse()
        return inner.to_str()
    assert isinstance(tokenizer, ByteTokenizer | GPT2Tokenizer)
    alphabet = byte_alphabet()
    names = ["".join(alphabet[byte] for byte in token) for token in tokenizer.tokens]
    vocabulary = {name: i for i, name in enumerate(names) if name}
    merges = [
        ("".join(alphabet[b] for b in left), "".join(alphabet[b] for b in right)) for left, right in pairs(tokenizer)
    ]
    inner = HFTokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(merges))
    inner.decoder = decoders.ByteLevel()
    if tokenizer.end_of_text is not None:
        inner.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return inner.to_str()


def pairs(tokenizer: ByteTokenizer | GPT2Tokenizer) -> list[tuple[bytes, bytes]]:
    """The merges in their order: the two parts that each token falls into under the merges before it.

    tiktoken keeps only the tokens, in the order in which they were learned; byte-level BPE that may use the tokens of
    lower rank alone leaves exactly two parts of each.
    """
    rank = {token: i for i, token in enumerate(tokenizer.tokens) if token}
    found: list[tuple[bytes, bytes]] = []
    for token, own in rank.items():
        if len(token) > 1:
            left, right = halves(token, rank, own)
            found.append((left, right))
    return found


def halves(token: bytes, rank: dict[bytes, int], below: int) -> list[bytes]:
    """Merge the bytes of a token, lowest rank first, with ranks under `below`."""
    parts = [bytes([byte]) for byte in token]
    while True:
        candidates = [(rank.get(a + b, below), i) for i, (a, b) in enumerate(pairwise(parts))]
        best, place = min(candidates)
        if best >= below:
            return parts
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
