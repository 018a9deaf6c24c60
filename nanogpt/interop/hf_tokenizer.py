"""Read and write tokenizers in the tokenizer.json format of Hugging Face's `tokenizers` library.

Supported are characters and byte-level BPE: ours, GPT-2's, and plain bytes, which is a BPE without merges.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from nanogpt import tokenizer as tokenizers
from nanogpt.errors import BadData, one_line
from nanogpt.files import read_json_bytes, read_text, write_file
from nanogpt.interop.tokenizer_checks import check_byte_level, check_characters, check_tokenizer_config, merge_rules
from nanogpt.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    byte_alphabet,
)

TOKENIZER_FILES = (  # formats other than that of the `tokenizers` library
    *("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model", "spiece.model", "vocab.txt"),
    *("sentencepiece.bpe.model", "tiktoken.model", "tekken.json", "vocab.bpe", "encoder.json", "tokenizer.bin"),
)


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer in a folder: our or Hugging Face's tokenizer.json, or GPT-2's two files; None without one.

    Raises BadData, also for files of other tokenizers.
    """
    path = folder / tokenizers.FILE
    try:
        if not path.exists():
            content: Any = read_gpt2_files(folder)
            return None if content is None else read_byte_level(content, folder)
        content = read_json_bytes(path)
        if "kind" in content:
            return tokenizers.load(folder)
        reader = read_characters if content["model"]["type"] == "WordLevel" else read_byte_level
        return reader(content, folder)
    except BadData:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise BadData(f"{one_line(path)}: not a tokenizer of characters or byte-level BPE: {one_line(error)}") from None


def read_characters(content: dict[str, Any], folder: Path) -> Tokenizer:
    """Return the character tokenizer that our export wrote. Raises BadData for any other content."""
    where = one_line(folder / tokenizers.FILE)
    vocabulary: dict[str, int] = content["model"]["vocab"]
    if words := [name for name in vocabulary if len(name) != 1]:
        raise BadData(f"{where}: model.vocab has {one_line(words[0])}, which is not a single character")
    tokenizer = CharTokenizer("".join(vocabulary))
    if [vocabulary[char] for char in tokenizer.chars] != list(range(len(vocabulary))):
        raise BadData(f"{where}: its characters are not in code point order")
    check_characters(content, json.loads(to_tokenizer_json(tokenizer)), where)
    check_tokenizer_config(folder / "tokenizer_config.json", content)
    check_adds_nothing(json.dumps(content), tokenizer.chars[0], where)
    return tokenizer


def check_adds_nothing(serialized: str, probe: str, where: str) -> None:
    """Raise BadData if the post-processor of a tokenizer.json adds tokens to the text `probe`."""
    from tokenizers import Tokenizer as HFTokenizer

    inner = HFTokenizer.from_str(serialized)
    if inner.encode(probe).ids != inner.encode(probe, add_special_tokens=False).ids:
        raise BadData(f"{where}: post_processor: adds tokens to every text, which isn't supported")


def read_gpt2_files(folder: Path) -> dict[str, Any] | None:
    """Return GPT-2's vocab.json and merges.txt in the form of tokenizer.json; None if there is no tokenizer.

    Raises BadData for the files of other tokenizers.
    """
    found = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    if not found:
        return None
    where, config = one_line(folder), folder / "tokenizer_config.json"
    kind = read_json_bytes(config).get("tokenizer_class") if config.exists() else None
    if kind is None and (folder / "config.json").exists():
        kind = {"gpt2": "GPT2Tokenizer"}.get(str(read_json_bytes(folder / "config.json").get("model_type")))
    if sorted(found) != ["merges.txt", "vocab.json"] or kind not in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        raise BadData(
            f"{where}/{found[0]}: a tokenizer that can't be read; allowed: tokenizer.json, as transformers writes it "
            "with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW)"
        )
    vocabulary: dict[str, int] = read_json_bytes(folder / "vocab.json")
    lines = read_text(folder / "merges.txt").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    end = {"content": END_OF_TEXT, "special": True, "normalized": False, "single_word": False}
    added = [{"id": vocabulary[END_OF_TEXT], **end, "lstrip": False, "rstrip": False}] * (END_OF_TEXT in vocabulary)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    return {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level, "model": model}


def read_byte_level(content: dict[str, Any], folder: Path) -> Tokenizer:
    """Return a byte-level BPE with the same ids as in transformers. Raises BadData naming what would change a text."""
    where = one_line(folder / tokenizers.FILE)
    check_byte_level(content, where)
    check_tokenizer_config(folder / "tokenizer_config.json", content)
    tokenizer = BPETokenizer(json.dumps(content | {"truncation": None, "padding": None}))
    if missing := {bytes([value]) for value in range(256)} - set(tokenizer.tokens):
        raise BadData(f"{where}: has no token for the byte {min(missing)[0]}, so some characters would be lost")
    check_adds_nothing(tokenizer.serialized, "a b", where)
    plain = ByteTokenizer()
    return plain if tokenizer.tokens == plain.tokens and not content["model"]["merges"] else tokenizer


def have_same_ids(a: Tokenizer, b: Tokenizer) -> bool:
    """Return whether two tokenizers give the same ids for every text: same tokens and same merge rules."""
    if a.tokens != b.tokens:
        return False
    if type(a) is type(b) and not isinstance(a, BPETokenizer):
        return True
    texts = (each.inner.to_str() if isinstance(each, BPETokenizer) else to_tokenizer_json(each) for each in (a, b))
    first, second = (merge_rules(json.loads(text)) for text in texts)
    return first == second


def write_tokenizer(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write tokenizer.json and tokenizer_config.json for AutoTokenizer."""
    write_file(folder / tokenizers.FILE, to_tokenizer_json(tokenizer))
    about: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.end_of_text is not None:
        about |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    write_file(folder / "tokenizer_config.json", json.dumps(about, indent=2) + "\n")


def to_tokenizer_json(tokenizer: Tokenizer) -> str:
    """Return the text of tokenizer.json."""
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
        ("".join(alphabet[b] for b in left), "".join(alphabet[b] for b in right))
        for left, right in recover_merges(tokenizer)
    ]
    inner = HFTokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(merges))
    inner.decoder = decoders.ByteLevel()
    if tokenizer.end_of_text is not None:
        inner.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return inner.to_str()


def recover_merges(tokenizer: ByteTokenizer | GPT2Tokenizer) -> list[tuple[bytes, bytes]]:
    """Return the merges in order: the two parts into which the earlier merges split each token.

    tiktoken stores only the tokens, in the order in which they were learned. Byte-level BPE with only the tokens of
    lower rank splits each token into exactly two parts.
    """
    rank = {token: i for i, token in enumerate(tokenizer.tokens) if token}
    merges: list[tuple[bytes, bytes]] = []
    for token, own in rank.items():
        if len(token) > 1:
            left, right = split_token(token, rank, own)
            merges.append((left, right))
    return merges


def split_token(token: bytes, rank: dict[bytes, int], below: int) -> list[bytes]:
    """Merge the bytes of a token, lowest rank first, using only ranks under `below`."""
    parts = [bytes([byte]) for byte in token]
    while True:
        candidates = [(rank.get(a + b, below), i) for i, (a, b) in enumerate(pairwise(parts))]
        best, i = min(candidates)
        if best >= below:
            return parts
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
