"""Tokenizers: characters, bytes, a byte-level BPE trained on the corpus, and GPT-2's BPE.

Every tokenizer has a table `tokens` of the bytes of each id, and a method to encode. Decoding joins these bytes; the
table also gives bits per byte. A tokenizer is stored in a JSON file, never as a pickle.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_never

from nanogpt.errors import BadData, BadEnvironment, BadInput, one_line
from nanogpt.files import read_json_bytes

Kind = Literal["char", "byte", "bpe", "gpt2"]
Ids = npt.NDArray[np.uint32]

END_OF_TEXT = "<|endoftext|>"
FILE = "tokenizer.json"


class Tokenizer(Protocol):
    """Interface of all tokenizers."""

    tokens: list[bytes]
    """Bytes of each id; b"" for the end-of-text id."""
    end_of_text: int | None
    """Id that ends a document; None if a newline ends it."""

    def encode(self, text: str) -> Ids:
        """Return the ids of `text`, uint32 of shape (number of tokens,). Special tokens in it are plain text."""
        ...

    def spec(self) -> dict[str, Any]:
        """Return the arguments of `from_spec` that build this tokenizer again."""
        ...


class CharTokenizer:
    """An id for each character of the corpus, in code point order, as in nanoGPT."""

    end_of_text: int | None = None

    def __init__(self, chars: str) -> None:
        self.chars = "".join(sorted(set(chars)))
        self.tokens = [char.encode("utf-8", "surrogatepass") for char in self.chars]
        points = np.array([ord(char) for char in self.chars], np.int64)
        self.id_of = np.full(int(points.max(initial=0)) + 2, -1, np.int64)  # the last entry is for all higher points
        self.id_of[points] = np.arange(len(points))

    def encode(self, text: str) -> Ids:
        """Return the ids. Raises BadInput with the first five characters that the vocabulary lacks."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
        ids = self.id_of[np.minimum(points, len(self.id_of) - 1)]
        if (ids < 0).any():
            first: dict[str, int] = {}
            for position in np.flatnonzero(ids < 0).tolist():
                first.setdefault(text[position], position)
                if len(first) == 5:
                    break
            lacking = ", ".join(f"{char!r} at {position}" for char, position in first.items())
            raise BadInput(f"the character vocabulary of {len(self.tokens)} lacks {lacking}")
        return ids.astype(np.uint32)

    def spec(self) -> dict[str, Any]:
        return {"kind": "char", "chars": self.chars}


class ByteTokenizer:
    """The 256 bytes of UTF-8."""

    end_of_text: int | None = None

    def __init__(self) -> None:
        self.tokens = [bytes([value]) for value in range(256)]

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.uint32)

    def spec(self) -> dict[str, Any]:
        return {"kind": "byte"}


class BPETokenizer:
    """Byte-level BPE of Hugging Face tokenizers, whose constructor raises Exception for what it can't read."""

    def __init__(self, serialized: str) -> None:
        from tokenizers import Tokenizer as HFTokenizer

        self.serialized = serialized
        self.inner = HFTokenizer.from_str(serialized)
        self.inner.encode_special_tokens = True  # "<|endoftext|>" in a text is plain text
        byte_of = {char: value for value, char in byte_alphabet().items()}
        vocabulary = self.inner.get_vocab()
        self.end_of_text: int | None = vocabulary.get(END_OF_TEXT)
        names = sorted(vocabulary, key=lambda name: vocabulary[name])
        if not names or [vocabulary[name] for name in names] != list(range(len(names))):
            raise ValueError("its ids are not 0, 1, 2 …")
        added = self.inner.get_added_tokens_decoder()  # stored as plain text, not in the alphabet of bytes
        self.tokens = [
            name.encode() if i in added else bytes(byte_of[char] for char in name) for i, name in enumerate(names)
        ]
        if self.end_of_text is not None:
            self.tokens[self.end_of_text] = b""

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Train a tokenizer of `vocab_size` tokens, the 256 bytes and end-of-text included; deterministic."""
        from tokenizers import Tokenizer as HFTokenizer
        from tokenizers import decoders, models, pre_tokenizers, trainers

        inner = HFTokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(byte_alphabet().values()),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner.to_str())

    def encode(self, text: str) -> Ids:
        return np.array(self.inner.encode(text, add_special_tokens=False).ids, np.uint32)

    def encode_special(self, text: str) -> list[int]:
        """Return the ids of a text, with special tokens in it encoded as their ids."""
        self.inner.encode_special_tokens = False
        try:
            return list(self.inner.encode(text, add_special_tokens=False).ids)
        finally:
            self.inner.encode_special_tokens = True

    def spec(self) -> dict[str, Any]:
        return {"kind": "bpe", "tokenizers": json.loads(self.serialized)}


class GPT2Tokenizer:
    """OpenAI's 50,257 tokens, encoded by tiktoken, which caches its files in TIKTOKEN_CACHE_DIR."""

    def __init__(self) -> None:
        import tiktoken

        try:
            self.inner = tiktoken.get_encoding("gpt2")
        except Exception as error:  # of any type: tiktoken passes on those of the download
            raise BadEnvironment(
                "GPT-2's tokenizer files are not cached and can't be downloaded "
                f"({one_line(type(error).__name__)}); set TIKTOKEN_CACHE_DIR to a folder that has them"
            ) from None
        end: int = self.inner.eot_token
        self.end_of_text: int | None = end
        self.tokens = [self.inner.decode_single_token_bytes(i) for i in range(self.inner.n_vocab)]
        self.tokens[end] = b""

    def encode(self, text: str) -> Ids:
        return np.array(self.inner.encode_ordinary(text), np.uint32)

    def spec(self) -> dict[str, Any]:
        return {"kind": "gpt2"}


def build(kind: Kind, texts: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
    """Return a tokenizer of this kind; `char` and `bpe` take their vocabulary from `texts`."""
    match kind:
        case "char":
            seen: set[str] = set()
            for text in texts:
                seen.update(text)
            return CharTokenizer("".join(seen))
        case "bpe":
            assert vocab_size is not None  # DataConfig demands it
            return BPETokenizer.train(texts, vocab_size)
        case "byte":
            return ByteTokenizer()
        case "gpt2":
            return GPT2Tokenizer()
        case _:
            assert_never(kind)


def from_spec(spec: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer with this `spec()`. Raises BadData for an invalid one."""
    kind = spec.get("kind")
    if kind == "char" and isinstance(spec.get("chars"), str) and spec["chars"]:
        return CharTokenizer(spec["chars"])
    if kind == "bpe" and isinstance(spec.get("tokenizers"), dict):
        try:
            return BPETokenizer(json.dumps(spec["tokenizers"]))
        except Exception as error:  # tokenizers raises plain Exception
            raise BadData(f"not a BPE tokenizer: {one_line(error)}") from None
    if kind in ("byte", "gpt2"):
        return build(kind, [])
    raise BadData(f"not a tokenizer of kind char, byte, bpe or gpt2 (kind {one_line(kind)!r})")


def to_json(tokenizer: Tokenizer) -> str:
    """Return the content of a tokenizer.json."""
    return json.dumps(tokenizer.spec(), ensure_ascii=True, indent=1) + "\n"


def load(folder: Path) -> Tokenizer:
    """Return the tokenizer of a prepared data set or a run. Raises BadData."""
    path = folder / FILE
    try:
        spec: object = read_json_bytes(path)
    except (OSError, ValueError) as error:
        raise BadData(f"{one_line(path)}: can't be read as JSON: {one_line(error)}") from None
    if not isinstance(spec, dict):
        raise BadData(f"{one_line(path)}: not a tokenizer")
    try:
        return from_spec({str(key): value for key, value in spec.items()})
    except BadData as error:
        raise BadData(f"{one_line(path)}: {error}") from None


def explain_meta_pickle(folder: Path) -> str | None:
    """Return why nanoGPT's meta.pkl in a folder isn't read and how to convert it, or None if there is none."""
    path = folder / "meta.pkl"
    if not path.exists():
        return None
    convert = f"python -m nanogpt.interop.pickle_import {one_line(path)}"
    return f"{one_line(path)}: a pickle can run code, so it isn't read; convert it safely: {convert}"


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return the digest of everything that decides the ids: the specification and the bytes of every token."""
    digest = hashlib.sha256(json.dumps(tokenizer.spec(), sort_keys=True).encode())
    for token in tokenizer.tokens:
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    """Return the special tokens, which `encode` takes as plain text."""
    if isinstance(tokenizer, BPETokenizer):
        added = tokenizer.inner.get_added_tokens_decoder().values()
        return [str(token.content) for token in added if token.special]
    return [] if tokenizer.end_of_text is None else [END_OF_TEXT]


def encode_with_special_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text, with special tokens in it encoded as their ids. Raises BadInput as `encode` does."""
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.encode_special(text)
    first, *others = text.split(END_OF_TEXT) if tokenizer.end_of_text is not None else [text]
    ids: list[int] = tokenizer.encode(first).tolist()
    for piece in others:
        ids += [int(tokenizer.end_of_text or 0), *tokenizer.encode(piece).tolist()]
    return ids


def start_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the default first id of a text without a prompt: end-of-text, else a newline, else 0."""
    if tokenizer.end_of_text is not None:
        return [tokenizer.end_of_text]
    return [tokenizer.tokens.index(b"\n") if b"\n" in tokenizer.tokens else 0]


def decode_bytes(tokenizer: Tokenizer, ids: Iterable[int]) -> bytes:
    """Return the bytes of a token sequence; end-of-text becomes a newline."""
    return b"".join(b"\n" if i == tokenizer.end_of_text else tokenizer.tokens[i] for i in ids)


def decode(tokenizer: Tokenizer, ids: Sequence[int] | Ids) -> str:
    """Return the text of a token sequence; bytes that are not UTF-8 become U+FFFD."""
    return decode_bytes(tokenizer, (int(i) for i in ids)).decode("utf-8", "replace")


def byte_alphabet() -> dict[int, str]:
    """Return the character that byte-level BPE writes for each byte (GPT-2's encoder, Radford et al. 2019).

    Printable bytes are written as themselves, the others as the characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {value: chr(256 + i) for i, value in enumerate(others)}
