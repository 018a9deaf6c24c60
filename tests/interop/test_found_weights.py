"""Other content in a folder of weights, or in nanoGPT's file, is named or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.errors import BadCheckpoint
from nanogpt.interop.sources import find_source, read_label_and_values
from tests.interop.test_nanogpt import ARGUMENTS, checkpoint, reference
from tests.interop.test_variants import build

pytest.importorskip("transformers")


def test_other_weights_in_the_folder_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2's own folder on the hub has five other files of the same weights; a value head is something else."""
    build("gpt2").save_pretrained(tmp_path / "gpt2")
    for name in ("training_args.bin", "optimizer.pt"):
        (tmp_path / "gpt2" / name).touch()
    capsys.readouterr()
    read_label_and_values(str(tmp_path / "gpt2"), 0)
    assert capsys.readouterr().err == ""
    for name in ("pytorch_model.bin", "value_head.safetensors", "consolidated.00.pth", "tf_model.h5"):
        (tmp_path / "gpt2" / name).touch()
    read_label_and_values(str(tmp_path / "gpt2"), 1)
    said = "model.safetensors is read, not consolidated.00.pth, pytorch_model.bin, tf_model.h5 and 1 more"
    assert said in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    read_label_and_values("gpt2", 2)
    assert "OpenAI's weights are read, not this folder; for the folder give init_from=./gpt2" in capsys.readouterr().err


def test_a_config_that_says_a_key_twice(tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("{", '{"tie_word_embeddings": false, ', 1))
    with pytest.raises(BadCheckpoint, match=r"config.json: has the key tie_word_embeddings twice"):
        find_source(str(tmp_path)).values()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04N.", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"not a checkpoint that can be read safely; allowed: nanoGPT's ckpt.pt"):
        find_source(str(tmp_path / "x.pt")).values()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 41}, "transformer.wte.weight is 40x16 in .*, and 41x16 by"),
        ({"vocab_size": 39}, "transformer.wte.weight is 40x16 in .*, and 39x16 by"),
        ({"block_size": 17}, "transformer.wpe.weight is 16x16 in .*, and 17x16 by"),
        ({"n_layer": 1}, "holds transformer.h.1.attn.c_attn.bias, which this network doesn't have"),
        ({"rope_base": 1e4}, "model_args has rope_base, which nanoGPT's network doesn't have"),
        ({"n_kv_head": 1}, "model_args has n_kv_head, which nanoGPT's network doesn't have"),
        ({"bias": 1}, "model_args: bias=1: allowed: true or false"),
        ({"n_head": 0}, "model_args: n_head=0: allowed: a whole number above 0"),
    ],
)
def test_arguments_that_the_tensors_contradict(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = checkpoint(reference(), tmp_path / "ckpt.pt")
    content = torch.load(path, weights_only=True)
    torch.save(content | {"model_args": ARGUMENTS | {"bias": True} | changes}, path)
    with pytest.raises(BadCheckpoint, match=message):
        find_source(str(path)).values()


def test_a_checkpoint_with_more_in_it(tmp_path: Path) -> None:
    path = checkpoint(reference(), tmp_path / "ckpt.pt")
    content = torch.load(path, weights_only=True)
    torch.save(content | {"ema_model": content["model"]}, path)
    with pytest.raises(BadCheckpoint, match="holds ema_model, which nanoGPT doesn't write"):
        find_source(str(path)).values()
