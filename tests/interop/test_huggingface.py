"""Weights and tokenizers to transformers and back: its own models give the same logits, its tokenizers the same ids."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanogpt import tokenizer as tokenizers
from nanogpt.config import ExportConfig, ModelConfig, TrainConfig, TrainedConfig
from nanogpt.errors import BadCheckpoint, BadInput
from nanogpt.interop.export import export_model, write_hf
from nanogpt.interop.export_config import to_hf_config
from nanogpt.interop.hf_tokenizer import read_tokenizer, write_tokenizer
from nanogpt.interop.load_model import TrainedModel, load_trained
from nanogpt.interop.names import from_llama, to_llama
from nanogpt.interop.sources import HFFolder
from nanogpt.model.gpt import GPT
from nanogpt.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, GPT2Tokenizer
from nanogpt.training.run import train
from tests.model.test_gpt import randomize

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
TEXT = "Hello, world!\n\n  It's 12345 o'clock — naïve café 🙂\tdef f(x):\n    return x\n"

MODERN = {"norm": "rmsnorm", "position": "rotary", "activation": "swiglu", "bias": False}
FORMS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt2, erf": {"activation": "gelu"},
    "gpt2, no biases, padded": {"bias": False, "vocab_multiple": 64},
    "gpt2, no gains": {"norm_affine": False},
    "llama": MODERN,
    "llama, no gains": MODERN | {"norm_affine": False},
    "llama, biases, grouped": MODERN | {"bias": True, "n_kv_head": 2},
    "llama, untied, padded": MODERN | {"tie_weights": False, "vocab_multiple": 64, "rope_base": 500_000.0},
    "qwen3": MODERN | {"qk_norm": True},
    "qwen3, no gains": MODERN | {"qk_norm": True, "norm_affine": False},
    "qwen3, grouped, untied": MODERN | {"qk_norm": True, "n_kv_head": 1, "tie_weights": False, "vocab_multiple": 32},
}


def model_of(**changes: Any) -> GPT:
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 24, "vocab_size": 61}
    model = GPT(ModelConfig.model_validate(sizes | changes)).eval()
    torch.manual_seed(1)
    randomize(model)
    return model


def exported(model: GPT, folder: Path) -> Path:
    vocabulary = CharTokenizer("".join(map(chr, range(40, 40 + (model.config.vocab_size or 0)))))
    write_hf(TrainedModel(model, vocabulary, "test", None, None), folder, ExportConfig())
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_transformers_has_the_same_logits(form: str, tmp_path: Path) -> None:
    model = model_of(**FORMS[form])
    folder = exported(model, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(theirs).__name__.lower().startswith(form.partition(",")[0])
    ids = torch.randint(61, (3, 24))
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, model(ids)[..., :61], atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_that_transformers_saved_is_read_back(form: str, tmp_path: Path) -> None:
    """Through transformers' own loading and saving, not only our own file."""
    model = model_of(**FORMS[form])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported(model, tmp_path / "out"), dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "saved")
    again = load_trained(TrainedConfig(init_from=str(tmp_path / "saved"), tokenizer=str(tmp_path / "out")), CPU).model
    ids = torch.randint(61, (3, 24))
    with torch.no_grad():
        assert torch.allclose(again(ids), theirs.eval()(ids).logits, atol=1e-4)
    assert again.config.vocab_size == 61 and again.config.kv_heads == model.config.kv_heads


def test_a_sharded_folder_and_the_names_of_the_hub(tmp_path: Path) -> None:
    """OpenAI's files have no `transformer.` in their names and hold the masks; large models come in several files."""
    model = model_of()
    folder = exported(model, tmp_path / "out")
    whole = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in whole.items()}
    bare["h.0.attn.bias"] = torch.tril(torch.ones(24, 24))[None, None]
    names = sorted(bare)
    save_file({name: bare[name] for name in names[:9]}, folder / "model-1.safetensors")
    save_file({name: bare[name] for name in names[9:]}, folder / "model-2.safetensors")
    (folder / "model.safetensors").unlink()
    index = {name: f"model-{1 if name in names[:9] else 2}.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    again = load_trained(TrainedConfig(init_from=str(folder)), CPU).model
    ids = torch.randint(61, (3, 24))
    assert torch.equal(again(ids), model(ids))
    index[names[0]] = "../model-1.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(BadCheckpoint, match="not an index of files in this folder"):
        HFFolder(folder).tensors()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "rmsnorm"}, "model.norm=rmsnorm: GPT2LMHeadModel .* needs model.norm=layernorm"),
        ({"activation": "relu2"}, "model.activation=relu2: .* model.activation=gelu or gelu_tanh"),
        (
            {"position": "rotary"},
            "model.norm=layernorm model.activation=gelu_tanh: LlamaForCausalLM .*norm=rmsnorm, model.activation=swiglu",
        ),
        (MODERN | {"activation": "gelu"}, "model.activation=gelu: LlamaForCausalLM .* needs model.activation=swiglu"),
        (MODERN | {"qk_norm": True, "bias": True}, "model.bias=true: Qwen3ForCausalLM .* needs model.bias=false"),
        ({"logit_softcap": 15.0}, "model.logit_softcap=15: GPT2LMHeadModel .* needs model.logit_softcap=null"),
        ({"conv": ["mlp", "qkv"]}, r"model.conv=\[mlp,qkv\]: GPT2LMHeadModel .* needs model.conv=\[\]"),
        ({"n_kv_head": 2}, "model.n_kv_head=2: .* needs model.n_kv_head=null or 4"),
    ],
)
def test_a_switch_without_a_form_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        to_hf_config(model_of(**changes).config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bloom"}, "model_type=bloom: allowed: gpt2, llama, qwen3"),
        ({"activation_function": "relu"}, "activation_function=relu: allowed: gelu, gelu_new"),
        ({"n_inner": 100}, "n_inner=100: allowed: null or 256"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=true: allowed: false"),
        ({"n_layer": None}, "n_layer=null: allowed: a whole number above 0"),
        ({"n_embd": "wide"}, "n_embd=wide: allowed: a whole number above 0"),
        ({"n_layer": 3}, r"weights don't fit: lacks the tensor h.2.attn.c_attn.weight \(64x192\)"),
        ({"n_positions": 25}, "transformer.wpe.weight is 24x64 in model.safetensors, and 25x64 by "),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = exported(model_of(), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((BadCheckpoint, BadInput), match=message):
        load_trained(TrainedConfig(init_from=str(folder)), CPU)


def test_what_is_no_safetensors_is_not_read(tmp_path: Path) -> None:
    folder = exported(model_of(), tmp_path / "out")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match=r"has no model.safetensors, and pickles \(pytorch_model.bin\) aren't read"):
        load_trained(TrainedConfig(init_from=str(folder)), CPU)
    (folder / "model.safetensors").write_bytes(b"\x80\x04" * 40)
    with pytest.raises(BadCheckpoint, match="can't be read"):
        load_trained(TrainedConfig(init_from=str(folder)), CPU)
    (folder / "config.json").write_text("[]")
    with pytest.raises(BadCheckpoint, match=r"config.json: not a JSON object"):
        load_trained(TrainedConfig(init_from=str(folder)), CPU)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = model_of()
    with torch.no_grad():
        model.transformer["h"][1].mlp.c_fc.bias[3] = float("nan")  # type: ignore[index]
    with pytest.raises(BadCheckpoint, match=r"transformer.h.1.mlp.c_fc.bias is not finite"):
        load_trained(TrainedConfig(init_from=str(exported(model, tmp_path / "out"))), CPU)


def test_renaming_loses_nothing() -> None:
    for changes in FORMS.values():
        model = model_of(**changes)
        named = {name: parameter.detach() for name, parameter in model.named_parameters()}
        if model.config.position == "rotary" and model.config.vocab_multiple == 1:
            theirs = {name.removeprefix("model."): t for name, t in to_llama(named, model.config).items()}
            again = from_llama(theirs)
            assert again.keys() == named.keys() and all(torch.equal(again[name], named[name]) for name in named)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_tokenizers_give_the_same_ids(kind: str, tmp_path: Path) -> None:
    built = {
        "char": lambda: CharTokenizer(TEXT),
        "byte": ByteTokenizer,
        "bpe": lambda: BPETokenizer.train([TEXT * 3], 300),
    }[kind]()
    same_ids(built, tmp_path)


def test_gpt2s_tokenizer_gives_the_same_ids(gpt2_files: None, tmp_path: Path) -> None:
    """The merges are found again from tiktoken's table: 50,000 of them, used for every text."""
    same_ids(GPT2Tokenizer(), tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    assert len(content["model"]["merges"]) == 50_000 and content["added_tokens"][0]["id"] == 50_256


def same_ids(ours: tokenizers.Tokenizer, folder: Path) -> None:
    write_tokenizer(ours, folder, 32)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (
        TEXT,
        TEXT[::-1] if isinstance(ours, CharTokenizer) else "".join(map(chr, range(32, 600))),
        "",
        "  ll ",
    ):
        ids = ours.encode(text).tolist()
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids) == text
    again = read_tokenizer(folder)
    assert again is not None and again.tokens == ours.tokens
    assert again.encode(TEXT).tolist() == ours.encode(TEXT).tolist()
    if ours.end_of_text is not None:
        assert theirs.eos_token_id == ours.end_of_text == again.end_of_text


def test_export_of_a_run(
    config: Callable[..., TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trained run, as a user exports it: the text that transformers continues with is the one sample.py gives."""
    built = config(**{"training.steps": 10})
    train(built)
    out = tmp_path / "exported"
    wanted = ExportConfig(runs_dir=built.runs_dir, out=str(out))
    assert export_model(wanted) == 0
    trained = load_trained(wanted, CPU)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = tokenizer("alpha beta", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, trained.model(ids), atol=1e-4)
    with pytest.raises(BadInput, match="exists; overwrite=true replaces it"):
        export_model(wanted)
    assert export_model(wanted.model_copy(update={"overwrite": True})) == 0
    (out / "mine.txt").write_text("x")
    with pytest.raises(BadInput, match="isn't an export that could be replaced"):
        export_model(wanted.model_copy(update={"overwrite": True}))
    assert sorted(path.name for path in tmp_path.glob(".*partial*")) == []
