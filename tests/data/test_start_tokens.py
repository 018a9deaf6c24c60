"""A text without a prompt starts from an id that the training split has."""

import json
from pathlib import Path

import numpy as np
import pytest

from nanogpt import tokenizer as tokenizers
from nanogpt.data.prepare import prepare
from nanogpt.generation.start_tokens import find_start_ids
from nanogpt.tokenizer import BPETokenizer, ByteTokenizer
from tests.data.conftest import Make


@pytest.mark.parametrize(
    ("text", "choice", "start"),
    [
        ("a line\n" * 99, {"tokenizer": "char"}, b"\n"),
        ("no line ends " * 99, {"tokenizer": "char"}, b"n"),
        ("no line ends " * 99, {"tokenizer": "byte"}, b"n"),
        ("a line\n" * 99, {"tokenizer": "bpe", "vocab_size": 260}, b"\n"),
        ("one<|endoftext|>two\n" * 99, {"tokenizer": "bpe", "vocab_size": 260}, b""),
        ("one<|endoftext|>two\n" * 99, {"tokenizer": "bpe", "vocab_size": 260, "separator": ""}, b"\n"),
    ],
)
def test_the_start_occurs_in_training(
    data: Make, tmp_path: Path, text: str, choice: dict[str, object], start: bytes
) -> None:
    (tmp_path / "a.txt").write_text(text)
    dataset = prepare(data(source=str(tmp_path / "a.txt"), **choice))
    ids = find_start_ids(dataset.tokenizer, dataset.train)
    assert [dataset.tokenizer.tokens[i] for i in ids] == [start]
    assert set(ids) <= set(dataset.train.read(0, 0, dataset.train.n_tokens).tolist())


def test_rows_are_ended_so_they_start_with_the_end_of_text(data: Make, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"row {i}\n"}) + "\n" for i in range(300)))
    dataset = prepare(data(source=str(tmp_path / "a.jsonl"), tokenizer="bpe", vocab_size=260))
    assert find_start_ids(dataset.tokenizer, dataset.train) == [dataset.tokenizer.end_of_text]


def test_an_end_of_text_mark_is_encoded_on_request() -> None:
    """As Hugging Face's tokenizers do with special tokens."""
    bpe = BPETokenizer.train(["some text to learn from, some text"], 270)
    text = "<|endoftext|>some<|endoftext|><|endoftext|> text"
    bpe.inner.encode_special_tokens = False
    theirs = bpe.inner.encode(text, add_special_tokens=False).ids
    bpe.inner.encode_special_tokens = True
    assert tokenizers.encode_with_special_tokens(bpe, text) == theirs and theirs.count(bpe.end_of_text) == 3
    assert bpe.end_of_text not in bpe.encode(text)
    assert tokenizers.encode_with_special_tokens(ByteTokenizer(), text) == list(np.frombuffer(text.encode(), np.uint8))
