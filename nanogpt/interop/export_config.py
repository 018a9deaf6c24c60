"""Map a ModelConfig to Hugging Face's config.json, or check that nanoGPT has its form; other keys are refused."""

from typing import Any

from typing_extensions import assert_never

from nanogpt.config import ModelConfig
from nanogpt.errors import BadInput
from nanogpt.formatting import format_value
from nanogpt.interop.architecture import IGNORED_KEYS, SIZES, check_known_keys

ONLY_HERE: dict[str, object] = {"logit_softcap": None, "conv": ((),)}  # keys no other program has -> value when unused


def to_hf_config(model: ModelConfig) -> dict[str, Any]:
    """Return the config.json of a model, without padding. Raises BadInput naming a switch that can't be expressed."""
    match model.position:
        case "learned":
            return gpt2_config(model)
        case "rotary":
            return llama_config(model)
        case _:
            assert_never(model.position)


def check_values(model: ModelConfig, form: str, **expected: object) -> None:
    """Raise BadInput naming all keys with values that a form doesn't support, and those that only this project has."""
    found: list[str] = []
    needed: list[str] = []
    for key, allowed in (ONLY_HERE | expected).items():
        value = getattr(model, key)
        choices = allowed if isinstance(allowed, tuple) else (allowed,)
        if value not in choices:
            found.append(f"model.{key}={format_value(value)}")
            needed.append(f"model.{key}={' or '.join(map(format_value, choices))}")  # pyright: ignore[reportUnknownArgumentType]
    if found:
        raise BadInput(f"{' '.join(found)}: {form} has no such form; it needs {', '.join(needed)}, in a new training")


def check_switches(model: ModelConfig, form: str, mapped: str, **expected: object) -> None:
    """Check every key of the model: any value of a `mapped` key can be written, others must be as `expected`.

    Raises BadInput naming a key that is in neither group, or keys with other values.
    """
    check_known_keys(type(model), f"the export to {form}")
    covered = {*SIZES, *IGNORED_KEYS, *ONLY_HERE, *expected, *mapped.split(), "norm_affine", "conv_history"}
    if uncovered := sorted(type(model).model_fields.keys() - covered):
        raise BadInput(f"model.{uncovered[0]}: it isn't known whether {form} has it, so it can't be exported")
    check_values(model, form, **expected)


def check_nanogpt_form(model: ModelConfig) -> None:
    """Raise BadInput naming the switches in which a model differs from nanoGPT's."""
    switches = gpt2_switches(model) | {"activation": "gelu", "tie_weights": True}
    check_switches(model, "nanoGPT", "bias rope_base", **switches)


def gpt2_switches(model: ModelConfig) -> dict[str, object]:
    return {"position": "learned", "norm": "layernorm", "qk_norm": False, "n_kv_head": (None, model.n_head)}


def gpt2_config(model: ModelConfig) -> dict[str, Any]:
    """Return the config.json of a GPT2LMHeadModel, without dropout. Raises BadInput."""
    form = "GPT2LMHeadModel (model.position=learned)"
    switches = gpt2_switches(model) | {"activation": ("gelu", "gelu_tanh")}
    check_switches(model, form, "bias rope_base tie_weights", **switches)
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
        "tie_word_embeddings": model.tie_weights,
        "torch_dtype": "float32",
    }


def llama_config(model: ModelConfig) -> dict[str, Any]:
    """Return the config.json of a LlamaForCausalLM, with `qk_norm` of a Qwen3ForCausalLM. Raises BadInput."""
    name = "Qwen3" if model.qk_norm else "Llama"
    form = f"{name}ForCausalLM (model.position=rotary, model.qk_norm={str(model.qk_norm).lower()})"
    biases = False if model.qk_norm else (False, True)  # Qwen3's MLP has no bias
    switches = {"position": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": biases}
    check_switches(model, form, "qk_norm n_kv_head rope_base tie_weights", **switches)
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
        "tie_word_embeddings": model.tie_weights,
        "torch_dtype": "float32",
    }
