"""Tokenizers that a fine-tuning changed: transformers' ids, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanogpt.errors import BadData
from nanogpt.interop.hf_tokenizer import have_same_ids, read_tokenizer, write_tokenizer
from nanogpt.interop.load_weights import check_same_tokenizer
from nanogpt.interop.sources import HFFolder
from nanogpt.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    decode,
    encode_with_special_tokens,
    special_tokens,
)

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


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PREFIX = LEVEL | {"add_prefix_space": True}
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


def characters(folder: Path) -> dict[str, Any]:
    write_tokenizer(CharTokenizer("\n abc"), folder, 64)
    return json.loads((folder / "tokenizer.json").read_text())


CHANGED: list[tuple[dict[str, Any], str]] = [
    ({"normalizer": {"type": "Lowercase"}}, "normalizer=.*Lowercase.*: allowed: none"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer=.*Whitespace.*: allowed: .*Split"),
    ({"pre_tokenizer": None}, "pre_tokenizer=None: allowed: .*Split"),
    ({"added_tokens": [{"id": 5, "content": "<s>", "special": True}]}, "added_tokens=.*: allowed: none"),
]


@pytest.mark.parametrize("number", range(len(CHANGED)))
def test_a_vocabulary_of_characters_is_not_enough(number: int, tmp_path: Path) -> None:
    """What comes before and after it decides the ids too."""
    changes, message = CHANGED[number]
    (tmp_path / "tokenizer.json").write_text(json.dumps(characters(tmp_path) | changes))
    with pytest.raises(BadData, match=message):
        read_tokenizer(tmp_path)


def test_characters_that_transformers_saved_again(tmp_path: Path) -> None:
    characters(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    ours = read_tokenizer(tmp_path / "again")
    assert isinstance(ours, CharTokenizer) and ours.chars == "\n abc"


@pytest.mark.parametrize("name", ADDED)
def test_special_tokens_in_a_prompt_give_the_ids_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(trained(tmp_path))
    ADDED[name](theirs)
    theirs.save_pretrained(tmp_path / "saved")
    ours = read_tokenizer(tmp_path / "saved")
    assert isinstance(ours, BPETokenizer)
    before = ours.encode(TEXT).tolist()
    assert encode_with_special_tokens(ours, TEXT) == theirs.encode(TEXT, add_special_tokens=False)
    assert ours.encode(TEXT).tolist() == before, "a text that isn't a prompt has none"
    assert set(special_tokens(ours)) == set(theirs.all_special_tokens) | {"<|endoftext|>"}


def test_the_same_tokens_under_other_rules_are_another_tokenizer(tmp_path: Path) -> None:
    ours = BPETokenizer.train(["hello to be or not " * 9], 300)
    assert have_same_ids(ours, BPETokenizer(ours.serialized))
    content = json.loads(ours.serialized)
    merges = content["model"]["merges"]
    other = content | {"model": content["model"] | {"merges": merges[::-1]}}
    assert BPETokenizer(json.dumps(other)).tokens == ours.tokens
    assert not have_same_ids(ours, BPETokenizer(json.dumps(other)))
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, LEVEL]}
    assert not have_same_ids(ours, BPETokenizer(json.dumps(content | {"pre_tokenizer": digits})))
    assert have_same_ids(ours, BPETokenizer(json.dumps(content | {"pre_tokenizer": LEVEL | {"trim_offsets": False}})))
    old = json.loads(ours.serialized)  # as files of 2020 have it
    old["model"]["merges"] = [" ".join(pair) for pair in merges]
    del old["pre_tokenizer"]["use_regex"]
    assert have_same_ids(ours, BPETokenizer(json.dumps(old)))
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(BadData, match="splits text or merges them otherwise"):
        check_same_tokenizer(HFFolder(tmp_path), ours)


def test_gpt2s_own_two_files(tmp_path: Path) -> None:
    """As transformers wrote them for years: without tokenizer.json."""
    content = json.loads((trained(tmp_path) / "tokenizer.json").read_text())
    old = tmp_path / "old"
    old.mkdir()
    (old / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    lines = [" ".join(pair) for pair in content["model"]["merges"]]
    (old / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
    with pytest.raises(BadData, match="a tokenizer that can't be read; allowed"):
        read_tokenizer(old)
    (old / "config.json").write_text('{"model_type": "gpt2"}')
    ours = read_tokenizer(old)
    assert ours is not None and have_same_ids(ours, BPETokenizer(json.dumps(content)))
    theirs = transformers.GPT2TokenizerFast.from_pretrained(old)
    assert encode_with_special_tokens(ours, TEXT) == theirs.encode(TEXT)
    (old / "added_tokens.json").write_text('{"<pad>": 300}')
    with pytest.raises(BadData, match="a tokenizer that can't be read"):
        read_tokenizer(old)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt", "tekken.json"])
def test_another_programs_tokenizer_is_named(name: str, tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path) is None
    (tmp_path / name).write_bytes(b"\n\x0e")
    with pytest.raises(BadData, match=f"{name}: a tokenizer that can't be read"):
        read_tokenizer(tmp_path)


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    path = trained(tmp_path) / "tokenizer.json"
    path.write_text(path.read_text().replace("{", '{"normalizer": {"type": "Lowercase"}, ', 1))
    with pytest.raises(BadData, match="has the key normalizer twice"):
        read_tokenizer(tmp_path)
