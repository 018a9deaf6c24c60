"""Check that a tokenizer.json gives the same ids here as in transformers and keeps every text unchanged.

The `tokenizers` library does the encoding; settings that would add, drop or change text are refused by name.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nanogpt.errors import BadData, one_line
from nanogpt.files import read_json_bytes

MODEL: dict[str, tuple[object, ...]] = {  # keys of a BPE model -> values that keep the text and aren't random
    "dropout": (None, 0, 0.0),
    "byte_fallback": (False,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
}
SPLITTERS = ("ByteLevel", "Split", "Digits")
CHANGES = ("add_prefix_space", "add_bos_token", "add_eos_token", "do_lower_case", "auto_map")  # tokenizer_config.json


def check_byte_level(content: Mapping[str, Any], where: str) -> None:
    """Raise BadData unless a tokenizer.json is a byte-level BPE that keeps every text unchanged."""
    model = content["model"]
    if model.get("type") != "BPE":
        raise BadData(f"{where}: model.type={one_line(model.get('type'))}: allowed: BPE, WordLevel of characters")
    for key, allowed in MODEL.items():
        if model.get(key, allowed[0]) not in allowed:
            raise BadData(f"{where}: model.{key}={one_line(model[key])}: not supported; allowed: {allowed[0]}")
    for step in flatten_steps(content.get("normalizer"), "normalizers"):
        if step.get("type") != "NFC":
            raise BadData(f"{where}: normalizer {one_line(step.get('type'))}: changes the text; allowed: none, NFC")
    steps = list(flatten_steps(content.get("pre_tokenizer"), "pretokenizers"))
    for step in steps:
        if step.get("type") not in SPLITTERS or step.get("add_prefix_space") or step.get("behavior") == "Removed":
            raise BadData(f"{where}: pre_tokenizer {one_line(step)}: adds or drops text, or isn't supported")
    if [step["type"] for step in steps].count("ByteLevel") != 1:
        raise BadData(f"{where}: pre_tokenizer: not byte-level, so some characters would be lost")
    for token in content.get("added_tokens") or ():
        if (token.get("lstrip") or token.get("rstrip")) and not token.get("special"):
            raise BadData(f"{where}: added token {one_line(token['content'])}: drops the spaces beside it")


def check_characters(content: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> None:
    """Raise BadData unless a tokenizer.json of single characters equals the one that our export writes."""
    for part in ("normalizer", "pre_tokenizer", "added_tokens"):
        if (content.get(part) or None) != (ours[part] or None):
            why = f"allowed: {one_line(ours[part] or 'none')}, as in an export of a character model"
            raise BadData(f"{where}: {part}={one_line(content[part])}: {why}")
    if content["model"].get("unk_token") not in ("", None):
        raise BadData(f"{where}: model.unk_token={one_line(content['model']['unk_token'])}: allowed: none")


def merge_rules(content: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what determines the ids of a byte-level BPE besides its tokens."""
    model = content["model"]
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    splitters = [
        {key: value for key, value in step.items() if key != "trim_offsets"}
        for step in flatten_steps(content.get("pre_tokenizer"), "pretokenizers")
    ]
    plain = [token for token in content.get("added_tokens") or () if not token.get("special")]
    normalizers = list(flatten_steps(content.get("normalizer"), "normalizers"))
    return merges, bool(model.get("ignore_merges")), splitters, plain, normalizers


def flatten_steps(part: Any, inner: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normalizer or pre-tokenizer, with sequences expanded."""
    if part is not None and part.get("type") == "Sequence":
        for step in part[inner]:
            yield from flatten_steps(step, inner)
    elif part is not None:
        yield part


def check_tokenizer_config(path: Path, content: Mapping[str, Any]) -> None:
    """Raise BadData if tokenizer_config.json, where there is one, gives other ids in transformers than tokenizer.json.

    `content` is that of tokenizer.json.
    """
    config: dict[str, Any] = read_json_bytes(path) if path.exists() else {}
    for key in CHANGES:
        if config.get(key):
            why = "adds or changes tokens, which isn't supported"
            raise BadData(f"{one_line(path)}: {key}={one_line(config[key])}: {why}")
    added = {token["content"]: token for token in content.get("added_tokens") or ()}
    for number, token in (config.get("added_tokens_decoder") or {}).items():
        found = added.get(token["content"], {})
        if str(found.get("id")) != str(number) or bool(found.get("special")) != bool(token.get("special")):
            raise BadData(f"{one_line(path)}: added token {one_line(token['content'])} differs from tokenizer.json")
