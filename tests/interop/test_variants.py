"""Folders that transformers wrote, unchanged and with a change: equal logits, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanogpt.config import ModelConfig
from nanogpt.errors import BadCheckpoint
from nanogpt.interop.load_weights import load_weights
from nanogpt.interop.sources import HFFolder, find_source
from nanogpt.model.gpt import GPT
from tests.model.test_gpt import randomize

transformers = pytest.importorskip("transformers")
Tensors = dict[str, torch.Tensor]

GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 32, "vocab_size": 97}
LLAMA = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "intermediate_size": 192,
    "max_position_embeddings": 64,
    "vocab_size": 97,
    "rms_norm_eps": 1e-6,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "llama": ("Llama", LLAMA),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 16, "num_key_value_heads": 4}),
}
IDS = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(1))


def build(kind: str, **changes: Any) -> Any:
    """Return a random model of transformers."""
    name, sizes = KINDS[kind]
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    config = getattr(transformers, f"{name}Config")(**sizes | special | changes)
    model = getattr(transformers, f"{name}{'LMHeadModel' if kind == 'gpt2' else 'ForCausalLM'}")(config).eval()
    torch.manual_seed(0)
    randomize(model)
    return model


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; `...` removes one."""
    content = json.loads((folder / "config.json").read_text())
    content = {key: value for key, value in (content | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(content))


def edit_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    changed = {name: tensor.clone().contiguous() for name, tensor in change(load_file(file)).items()}
    save_file(changed, file, {"format": "pt"})


def ours(folder: Path) -> torch.Tensor:
    """Return the logits of our model with the weights of a folder."""
    source = find_source(str(folder))
    model = GPT(ModelConfig.model_validate(source.values() | {"vocab_multiple": 64}), seed=None).eval()
    load_weights(model, source)
    with torch.no_grad():
        return model(IDS)[..., :97]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    """Save a folder of each architecture; return it with the logits of transformers."""
    found: dict[str, tuple[Path, torch.Tensor]] = {}
    for kind in KINDS:
        model, folder = build(kind), tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder)
        with torch.no_grad():
            found[kind] = folder, model(IDS).logits
    return found


@pytest.fixture
def copy(saved: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path) -> Callable[[str], tuple[Path, torch.Tensor]]:
    def make(kind: str) -> tuple[Path, torch.Tensor]:
        folder, logits = saved[kind]
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path, logits

    return make


def renamed(change: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def frequencies(base: float) -> Tensors:
    values = torch.tensor([base ** (-2 * i / 16) for i in range(8)])
    return {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": values for i in range(2)}


SAME_TENSORS: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "as it is": ("gpt2", dict),
    "without transformer.": ("gpt2", renamed(lambda name: name.removeprefix("transformer."))),
    "module.": ("gpt2", renamed(lambda name: f"module.{name}")),
    "module._orig_mod.": ("llama", renamed(lambda name: f"module._orig_mod.{name}")),
    "model.model.": ("llama", renamed(lambda name: f"model.{name}")),
    "compiled blocks": ("gpt2", renamed(lambda name: name.replace(".attn.", "._orig_mod.attn."))),
    "masks": (
        "gpt2",
        lambda t: t | {"transformer.h.0.attn.bias": torch.ones(1), "transformer.h.1.attn.masked_bias": torch.ones(1)},
    ),
    "an equal head, gpt2": ("gpt2", lambda t: t | {"lm_head.weight": t["transformer.wte.weight"]}),
    "frequencies": ("llama", lambda t: t | frequencies(10_000.0)),
    "qwen3 as it is": ("qwen3", dict),
}


@pytest.mark.parametrize("name", SAME_TENSORS)
def test_other_names_and_buffers(name: str, copy: Any) -> None:
    kind, change = SAME_TENSORS[name]
    folder, logits = copy(kind)
    edit_tensors(folder, change)
    assert torch.allclose(ours(folder), logits, atol=1e-4)


SAME_CONFIG: list[tuple[str, dict[str, Any]]] = [
    (
        "gpt2",
        {"torch_dtype": "float16", "summary_type": "x", "n_ctx": 32, "hidden_size": 64, "task_specific_params": {}},
    ),
    ("gpt2", {"attn_pdrop": 0.5, "bos_token_id": 7, "_num_labels": 1, "output_past": True, "n_inner": 256}),
    ("llama", {"head_dim": ...}),
    ("llama", {"head_dim": None, "num_key_value_heads": None, "pretraining_tp": 1, "hidden_act": "swish"}),
    ("llama", {"rope_parameters": ..., "rope_theta": 10_000}),
    ("llama", {"rope_parameters": ..., "rope_scaling": {"type": "default"}}),
    ("llama", {"rope_parameters": None, "rope_scaling": None}),
    ("llama", {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {}}),  # SmolLM
    ("qwen3", {"sliding_window": 4, "max_window_layers": 0, "layer_types": ["full_attention"] * 2}),
]


@pytest.mark.parametrize("number", range(len(SAME_CONFIG)))
def test_harmless_keys(number: int, copy: Any) -> None:
    kind, changes = SAME_CONFIG[number]
    folder, logits = copy(kind)
    edit(folder, **changes)
    assert torch.allclose(ours(folder), logits, atol=1e-4)


REFUSED_CONFIG: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"vocab_size": 90}, "transformer.wte.weight is 97x64 in model.safetensors, and 90x64 by"),
    ("gpt2", {"vocab_size": 98}, "transformer.wte.weight is 97x64 in model.safetensors, and 98x64 by"),
    ("gpt2", {"n_positions": 16}, "transformer.wpe.weight is 32x64 in model.safetensors, and 16x64 by"),
    ("gpt2", {"n_layer": 3}, r"lacks the tensor h\.2\.attn\.c_attn\.weight"),
    ("gpt2", {"n_layer": 1}, r"holds transformer\.h\.1\..*, which this network doesn't have"),
    ("gpt2", {"n_ctx": 64}, "n_ctx=64: allowed: 32, as n_positions"),
    ("gpt2", {"hidden_size": 128}, "hidden_size=128: allowed: 64, as n_embd"),
    ("gpt2", {"n_layer": True}, "n_layer=true: allowed: a whole number"),
    ("gpt2", {"n_head": 5}, "not a network that can be built here: .*must divide"),
    ("gpt2", {"n_layer": 10**9}, "not a network that can be built here: .*n_layer"),
    ("gpt2", {"tie_word_embeddings": "false"}, "tie_word_embeddings=false: allowed: true or false"),
    ("gpt2", {"tie_word_embeddings": False}, r"lacks the tensor lm_head\.weight"),
    ("gpt2", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06: allowed: 1e-05"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=false: allowed: true"),
    ("gpt2", {"n_inner": 128}, "n_inner=128: allowed: null or 256"),
    ("gpt2", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config=.*fp8.*: allowed: null"),
    ("gpt2", {"architectures": ["GPT2DoubleHeadsModel"]}, "architectures=.*GPT2DoubleHeadsModel"),
    ("gpt2", {"architectures": 7}, "architectures=7: allowed: a list of GPT2LMHeadModel"),
    ("gpt2", {"auto_map": {"AutoModel": "code.Model"}}, "auto_map=.*not a known key"),
    ("gpt2", {"n_lyaer": 2}, "n_lyaer=2: not a known key .*did you mean 'n_layer'"),
    ("llama", {"vocab_size": 100}, "model.embed_tokens.weight is 97x64 in model.safetensors, and 100x64 by"),
    ("llama", {"logits_scaling": 8.0}, "logits_scaling=8.0: not a known key of model_type=llama"),
    ("llama", {"unheard_of": None}, "unheard_of=null: not a known key"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp=2: allowed: 1"),
    ("llama", {"sliding_window": 4}, "sliding_window=4: allowed: null"),
    ("llama", {"attention_bias": 1}, "attention_bias=1: allowed: true or false"),
    ("llama", {"mlp_bias": True}, "mlp_bias=true: allowed: false"),
    ("llama", {"head_dim": 32}, "head_dim=32: allowed: null or 16"),
    ("llama", {"intermediate_size": 256}, "intermediate_size=256: allowed: 192"),
    ("llama", {"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05: allowed: 1e-06"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu: allowed: silu"),
    ("llama", {"rope_theta": 5e5}, "rope_parameters.rope_theta=10000.0: allowed: 500000.0, as rope_theta"),
    ("llama", {"rope_scaling": {"factor": 2.0, "type": "linear"}}, "rope_scaling.type=linear: allowed: default"),
    ("llama", {"rope_parameters": {"type": "linear"}}, "rope_parameters.type=linear: allowed: default"),
    ("llama", {"rope_parameters": {"factor": 8.0, "rope_type": "llama3"}}, "rope_parameters.rope_type=llama3"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters.full_attention="),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor=0.5"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: allowed: null or 1.0"),
    ("llama", {"rope_theta": "5e5"}, "rope_theta=5e5: allowed: a number"),
    ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
    ("qwen3", {"attention_bias": True}, "attention_bias=true: allowed: false"),
    ("qwen3", {"use_sliding_window": True}, "use_sliding_window=true: allowed: false"),
    ("qwen3", {"head_dim": ...}, "head_dim=128: allowed: 16"),
    ("qwen3", {"num_key_value_heads": ...}, "not a network that can be built here"),
    ("qwen3", {"mlp_bias": True}, "mlp_bias=true: allowed: false"),
]


@pytest.mark.parametrize("number", range(len(REFUSED_CONFIG)))
def test_a_config_that_says_something_else(number: int, copy: Any) -> None:
    kind, changes, message = REFUSED_CONFIG[number]
    folder, _ = copy(kind)
    edit(folder, **changes)
    with pytest.raises(BadCheckpoint, match=message):
        find_source(str(folder)).values()


LORA = "model.layers.0.self_attn.q_proj.lora_A.weight"
REFUSED_TENSORS: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "LoRA": ("llama", lambda t: t | {LORA: torch.ones(4, 64)}, "lora_A.weight, which this network doesn't have"),
    "scales": (
        "llama",
        lambda t: t | {"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1)},
        "weight_scale_inv, which this network doesn't have",
    ),
    "sinks": ("llama", lambda t: t | {"model.layers.0.self_attn.sinks": torch.ones(4)}, "sinks, which this network"),
    "a classifier": ("gpt2", lambda t: t | {"score.weight": torch.ones(2, 64)}, "score.weight, which this network"),
    "a head's bias": ("gpt2", lambda t: t | {"lm_head.bias": torch.ones(97)}, "lm_head.bias, which this network"),
    "int8": (
        "llama",
        lambda t: {name: x.to(torch.int8) if "up_proj" in name else x for name, x in t.items()},
        "up_proj.weight is stored as I8; allowed: floats of 16 bits or more",
    ),
    "fp8": (
        "llama",
        lambda t: {name: x.to(torch.float8_e4m3fn) if "up_proj" in name else x for name, x in t.items()},
        "up_proj.weight is stored as F8_E4M3; allowed",
    ),
    "twice": (
        "gpt2",
        lambda t: t | {"module.transformer.wte.weight": t["transformer.wte.weight"]},
        "which are one tensor",
    ),
    "another head, gpt2": (
        "gpt2",
        lambda t: t | {"lm_head.weight": t["transformer.wte.weight"] * 2},
        "lm_head.weight differs from the token embedding, but config.json ties them",
    ),
    "a head of other rows": ("gpt2", lambda t: t | {"lm_head.weight": torch.ones(98, 64)}, "lm_head.weight is 98x64"),
    "other frequencies": (
        "llama",
        lambda t: t | frequencies(5e5),
        "inv_freq: differs from the frequencies of rope_the",
    ),
    "not finite": (
        "gpt2",
        lambda t: t | {"transformer.ln_f.bias": torch.full((64,), float("inf"))},
        "transformer.ln_f.bias is not finite",
    ),
    "transposed": (
        "gpt2",
        lambda t: t | {"transformer.h.0.mlp.c_fc.weight": torch.ones(256, 64)},
        "c_fc.weight is 256x64",
    ),
    "no head": ("llama", lambda t: {n: x for n, x in t.items() if n != "lm_head.weight"}, "lacks the tensor lm_head"),
}


@pytest.mark.parametrize("name", REFUSED_TENSORS)
def test_tensors_that_would_not_be_used(name: str, copy: Any) -> None:
    kind, change, message = REFUSED_TENSORS[name]
    folder, _ = copy(kind)
    edit_tensors(folder, change)
    with pytest.raises(BadCheckpoint, match=message):
        ours(folder)


def test_an_untied_gpt2_keeps_its_head(tmp_path: Path) -> None:
    model = build("gpt2", tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(ours(tmp_path), model(IDS).logits, atol=1e-4)
    assert HFFolder(tmp_path).values()["tie_weights"] is False
