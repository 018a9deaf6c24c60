"""Which network foreign weights are for: `config.json` of Hugging Face to a ModelConfig's values, and back.

Three forms are known: GPT-2 (`gpt2`), Llama (`llama`), and Llama with normalised queries and keys (`qwen3`). Whatever a
config says that would make another network of it is refused by name. No torch here: doors ask before anything starts.
"""

from collections.abc import Mapping
from typing import Any

from nanogpt.config import ModelConfig
from nanogpt.errors import BadCheckpoint, BadInput, escaped

GPT2_SIZES = {  # Radford et al. 2019, table 2: layers, heads, channels
    "gpt2": (12, 12, 768),
    "gpt2_medium": (24, 16, 1024),
    "gpt2_large": (36, 20, 1280),
    "gpt2_xl": (48, 25, 1600),
}
Values = dict[str, Any]
"""Every key of a ModelConfig that the weights decide, with its value."""

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
PLAIN: Values = {
    "norm": "layernorm",
    "position": "learned",
    "rope_base": 10_000.0,
    "qk_norm": False,
    "n_kv_head": None,
    "tied_head": True,
    "norm_weight": True,
    "softcap": None,
    "conv": [],
    "conv_taps": 3,
}


def openai_values(name: str) -> Values:
    """OpenAI's GPT-2 of that size."""
    n_layer, n_head, n_embd = GPT2_SIZES[name]
    return gpt2_values(n_layer, n_head, n_embd, 1024, 50_257, bias=True, activation="gelu_tanh")


def gpt2_values(
    n_layer: int, n_head: int, n_embd: int, positions: int, vocab: int, bias: bool, activation: str
) -> Values:
    """A GPT-2 of any size."""
    return PLAIN | {
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
        "block_size": positions,
        "vocab_size": vocab,
        "bias": bias,
        "activation": activation,
    }


def from_hf(config: Mapping[str, Any], where: str) -> Values:
    """The values of a Hugging Face config.json. Raises BadCheckpoint naming the key that our networks don't have."""
    kind = config.get("model_type")
    readers = {"gpt2": from_gpt2, "llama": from_llama, "qwen3": from_llama}
    if kind not in readers:
        raise BadCheckpoint(f"{where}: model_type={escaped(kind)}: allowed: {', '.join(readers)}")
    try:
        values = readers[kind](config, where)
        if wrong := [key for key in SIZES if not isinstance(values[key], int) or values[key] < 1]:
            raise ValueError(f"{wrong[0]} is {values[wrong[0]]}")
        return values
    except KeyError as error:
        raise BadCheckpoint(f"{where}: lacks {escaped(error)}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise BadCheckpoint(f"{where}: not a valid config: {escaped(error)}") from None


def expect(config: Mapping[str, Any], where: str, **expected: Any) -> None:
    """Keys that, where they are given, must have one value. Raises BadCheckpoint."""
    for key, value in expected.items():
        found = config.get(key, value)
        if found != value:
            raise BadCheckpoint(f"{where}: {key}={escaped(found)}: allowed: {value}")


def from_gpt2(config: Mapping[str, Any], where: str) -> Values:
    """GPT2LMHeadModel."""
    n_embd, activation = config["n_embd"], config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise BadCheckpoint(f"{where}: activation_function={escaped(activation)}: allowed: {', '.join(ACTIVATIONS)}")
    if config.get("n_inner") not in (None, 4 * n_embd):
        raise BadCheckpoint(f"{where}: n_inner={escaped(config['n_inner'])}: allowed: {4 * n_embd}")
    expect(
        config,
        where,
        layer_norm_epsilon=1e-5,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
        tie_word_embeddings=True,
    )
    sizes = (config[key] for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"))
    return gpt2_values(*sizes, bias=True, activation=ACTIVATIONS[activation])


def from_llama(config: Mapping[str, Any], where: str) -> Values:
    """LlamaForCausalLM and Qwen3ForCausalLM."""
    qk_norm = config["model_type"] == "qwen3"
    n_embd, n_head = config["hidden_size"], config["num_attention_heads"]
    bias = bool(config.get("attention_bias", False))
    rope: Mapping[str, Any] = config.get("rope_parameters") or {}
    values: Values = PLAIN | {
        "n_layer": config["num_hidden_layers"],
        "n_head": n_head,
        "n_embd": n_embd,
        "block_size": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
        "bias": bias,
        "activation": "swiglu",
        "norm": "rmsnorm",
        "position": "rotary",
        "rope_base": float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
        "qk_norm": qk_norm,
        "n_kv_head": config.get("num_key_value_heads", n_head),
        "tied_head": bool(config.get("tie_word_embeddings", False)),
    }
    width = ModelConfig(n_head=1, n_embd=n_embd, activation="swiglu").mlp_width
    expect(config, where, head_dim=n_embd // n_head, intermediate_size=width, hidden_act="silu", rms_norm_eps=1e-6)
    expect(config, where, mlp_bias=bias and not qk_norm, rope_scaling=None, use_sliding_window=False)
    expect(rope, where, rope_type="default")
    return values


def to_hf(model: ModelConfig) -> dict[str, Any]:
    """The config.json of a model, without padding. Raises BadInput naming the switch that has no form there."""
    return gpt2_config(model) if model.position == "learned" else llama_config(model)


def require(model: ModelConfig, form: str, **expected: object) -> None:
    """Switches as a form has them, and none that only we have. Raises BadInput naming all that are others."""
    found: list[str] = []
    needed: list[str] = []
    for key, allowed in ({"softcap": None, "conv": ((),)} | expected).items():
        value = getattr(model, key)
        choices = allowed if isinstance(allowed, tuple) else (allowed,)
        if value not in choices:
            found.append(f"model.{key}={shown(value)}")
            needed.append(f"model.{key}={' or '.join(map(shown, choices))}")  # pyright: ignore[reportUnknownArgumentType]
    if found:
        raise BadInput(
            f"{' '.join(found)}: {form} has no such form; it needs {', '.join(needed)}, in a training from the start"
        )


def shown(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return f"[{','.join(map(shown, value))}]"  # pyright: ignore[reportUnknownArgumentType]
    return "null" if value is None else escaped(str(value).lower())


def require_nanogpt(model: ModelConfig) -> None:
    """The one form that nanoGPT has. Raises BadInput naming the switches that are others."""
    require(model, "nanoGPT", activation="gelu", position="learned", **gpt2_switches(model))


def gpt2_switches(model: ModelConfig) -> dict[str, object]:
    return {"norm": "layernorm", "qk_norm": False, "tied_head": True, "n_kv_head": (None, model.n_head)}


def gpt2_config(model: ModelConfig) -> dict[str, Any]:
    """GPT2LMHeadModel, without dropout: it is for training."""
    form = "GPT2LMHeadModel (model.position=learned)"
    require(model, form, activation=("gelu", "gelu_tanh"), **gpt2_switches(model))
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": {"gelu": "gelu", "gelu_tanh": "gelu_new"}[model.activation],
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_embd": model.n_embd,
        "n_positions": model.block_size,
        "vocab_size": model.vocab_size,
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


def llama_config(model: ModelConfig) -> dict[str, Any]:
    """LlamaForCausalLM, or with normalised queries and keys Qwen3ForCausalLM."""
    name = "Qwen3" if model.qk_norm else "Llama"
    form = f"{name}ForCausalLM (model.position=rotary, model.qk_norm={str(model.qk_norm).lower()})"
    biases = False if model.qk_norm else (False, True)  # Qwen3's MLP has none
    require(model, form, norm="rmsnorm", activation="swiglu", bias=biases)
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": name.lower(),
        "hidden_act": "silu",
        "num_hidden_layers": model.n_layer,
        "num_attention_heads": model.n_head,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "hidden_size": model.n_embd,
        "intermediate_size": model.mlp_width,
        "max_position_embeddings": model.block_size,
        "vocab_size": model.vocab_size,
        "attention_bias": model.bias,
        "mlp_bias": model.bias,
        "rms_norm_eps": 1e-6,
        "rope_theta": model.rope_base,  # transformers 4 reads this, 5 the next
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "attention_dropout": 0.0,
        "tie_word_embeddings": model.tied_head,
        "torch_dtype": "float32",
    }
