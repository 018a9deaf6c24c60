"""Index files of sharded weights, and keys that a newer transformers or a new switch of ours would add."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanogpt.config import ModelConfig
from nanogpt.errors import BadCheckpoint, BadInput
from nanogpt.fields import fixed
from nanogpt.interop import architecture, sources
from nanogpt.interop.export_config import check_nanogpt_form, to_hf_config
from nanogpt.interop.hf_config import ALL_HARMLESS, FIXED, ConfigReader, read_gpt2, read_llama
from nanogpt.interop.sources import HFFolder
from tests.interop.test_variants import IDS, KINDS, build, ours, transformers


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_shards_that_contradict_their_index(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    with torch.no_grad():
        assert torch.allclose(ours(tmp_path), model(IDS).logits, atol=1e-4)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    mapped = content["weight_map"]
    names = sorted(mapped)
    first = next(name for name in names if list(mapped.values()).count(mapped[name]) > 1)
    last = next(name for name in names if mapped[name] != mapped[first])

    def refused(weight_map: dict[str, str], message: str) -> None:
        index.write_text(json.dumps(content | {"weight_map": weight_map}))
        with pytest.raises(BadCheckpoint, match=message):
            HFFolder(tmp_path).values()

    refused(mapped | {"more": mapped[first]}, "lacks more, which model.safetensors.index.json names")
    refused({name: file for name, file in mapped.items() if name != first}, "index.json says nothing about it")
    refused(mapped | {first: mapped[last]}, f"index.json says {mapped[last]}")
    refused(mapped | {"more": "gone.safetensors"}, "names gone.safetensors, which doesn't exist")
    shard = load_file(tmp_path / mapped[last])
    save_file(shard | {first: torch.ones(1)}, tmp_path / mapped[last])
    refused(mapped, f"{re.escape(first)} is in model-.* and in model-|index.json says")
    save_file(shard, tmp_path / mapped[last])
    save_file(shard, tmp_path / "model-00099-of-00099.safetensors")
    refused(mapped, "model-00099-of-00099.safetensors: isn't named by model.safetensors.index.json")
    (tmp_path / "model-00099-of-00099.safetensors").unlink()
    save_file(shard, tmp_path / "model.safetensors")
    refused(mapped, "has model.safetensors and model.safetensors.index.json")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(mapped, "adapter_config.json: an adapter, which isn't applied")


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_transformers_is_known(kind: str) -> None:
    """A key that a newer transformers writes is found here before a user finds it."""
    config = getattr(transformers, f"{KINDS[kind][0]}Config")(**KINDS[kind][1])
    keys = ConfigReader(config.to_dict(), "config.json")
    (read_gpt2 if kind == "gpt2" else read_llama)(keys)
    assert config.to_dict().keys() <= keys.known_keys
    assert not ALL_HARMLESS & FIXED.keys()


class Switched(ModelConfig):
    """Model config with a switch that neither exports nor imports know."""

    parallel: bool = fixed(False, "attention and MLP read the same input")


def test_a_new_switch_is_neither_exported_nor_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Switched(activation="gelu", vocab_size=97)
    for check in (to_hf_config, check_nanogpt_form):
        with pytest.raises(BadInput, match=r"model.parallel: .* doesn't know this key"):
            check(model)
    with monkeypatch.context() as patched:  # a table that was filled in, and an export that was forgotten
        patched.setattr(architecture, "DECIDED_KEYS", (*architecture.DECIDED_KEYS, "parallel"))
        for check in (to_hf_config, check_nanogpt_form):
            with pytest.raises(BadInput, match=r"model.parallel: it isn't known whether .* has it"):
                check(model)
    monkeypatch.setattr(sources, "ModelConfig", Switched)
    with pytest.raises(BadInput, match=r"model.parallel: init_from=gpt2 doesn't know this key"):
        sources.fill_from_weights("gpt2", {})
