"""Tokenizers that a fine-tuning changed: transformers' ids, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanogpt.errors import BadData
from nanogpt.interop.hf_tokenizer import read_tokenizer, write_tokenizer
from nanogpt.tokenizer import BPETokenizer, ByteTokenizer, decode

transformers = pytest.importorskip("transformers")
TEXT = "[USER] hello new_token two words <|pad|> <用户> café bye<|endoftext|> naïve 🙂\n\n  end"
ADDED: dict[str, Callable[[Any], Any]] = {
    "special": lambda t: t.add_special_tokens({"pad_token": "<|pad|>"}),
    "plain": lambda t: t.add_tokens(["new_token"]),
    "plain with a blank": lambda t: t.add_tokens(["two words"]),
    "plain beyond ASCII": lambda t: t.add_tokens(["café", "用户"]),
    "special beyond ASCII": lambda t: t.add_special_tokens({"pad_token": "<用户>"}),
}


def trained(folder: Path) -> Path:
    write_tokenizer(BPETokenizer.train(["hello to be or not " * 9], 300), folder, 64)
    return folder


@pytest.mark.parametrize("name", ADDED)
def test_added_tokens_give_the_ids_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(trained(tmp_path))
    ADDED[name](theirs)
    theirs.save_pretrained(tmp_path / "saved")
    ours = read_tokenizer(tmp_path / "saved")
    assert ours is not None and len(ours.tokens) == len(theirs)
    ids = ours.encode(TEXT).tolist()
    assert ids == theirs.encode(TEXT, add_special_tokens=False, split_special_tokens=True)
    assert decode(ours, ids) == TEXT


PREFIX = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
START = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase: changes the text"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}}, "normalizer NFKC"),
    ({"pre_tokenizer": PREFIX}, "pre_tokenizer .*add_prefix_space"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer .*Whitespace"),
    ({"pre_tokenizer": None}, "pre_tokenizer: not byte-level"),
    ({"post_processor": START}, "post_processor: adds tokens to every text"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_would_change_a_text_is_refused(number: int, tmp_path: Path) -> None:
    changes, message = REFUSED[number]
    path = trained(tmp_path) / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BadData, match=message):
        read_tokenizer(tmp_path)


def test_settings_beside_it(tmp_path: Path) -> None:
    """Truncation is not applied, as transformers doesn't unless asked; what adds tokens is refused; bytes are bytes."""
    path = trained(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(content | {"truncation": cut}))
    ours = read_tokenizer(tmp_path)
    assert ours is not None and decode(ours, ours.encode(TEXT)) == TEXT
    path.write_text(json.dumps(content | {"model": content["model"] | {"dropout": 0.5}}))
    with pytest.raises(BadData, match=r"model.dropout=0.5"):
        read_tokenizer(tmp_path)
    path.write_text(json.dumps(content))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    with pytest.raises(BadData, match="add_bos_token=True: adds or changes tokens"):
        read_tokenizer(tmp_path)
    write_tokenizer(ByteTokenizer(), tmp_path, 64)
    assert isinstance(read_tokenizer(tmp_path), ByteTokenizer)
