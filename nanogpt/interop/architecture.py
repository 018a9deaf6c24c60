"""The keys of a ModelConfig that weights decide, with the values of GPT-2. No torch here.

A key of ModelConfig that is in none of these tables is refused by name, in imports and exports: nobody has said yet
what it means for weights from elsewhere.
"""

from typing import Any

from nanogpt.config import ModelConfig
from nanogpt.errors import BadInput

GPT2_SIZES = {  # Radford et al. 2019, table 2: layers, heads, channels
    "gpt2": (12, 12, 768),
    "gpt2_medium": (24, 16, 1024),
    "gpt2_large": (36, 20, 1280),
    "gpt2_xl": (48, 25, 1600),
}
Values = dict[str, Any]
"""Every key of a ModelConfig that the weights decide, with its value."""

SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
GPT2_DEFAULTS: Values = {
    "norm": "layernorm",
    "position": "learned",
    "rope_base": 10_000.0,
    "qk_norm": False,
    "n_kv_head": None,
    "tie_weights": True,
    "norm_affine": True,
    "logit_softcap": None,
    "conv": [],
    "conv_history": 3,
}
IGNORED_KEYS = {  # keys that say nothing about a trained network -> why
    "name": "a label",
    "vocab_multiple": "padding rows, which no token uses",
    "dropout": "training only",
    "init": "the start of a training only",
    "zero_init": "the start of a training only",
}
DECIDED_KEYS = frozenset({*GPT2_DEFAULTS, *SIZES, "bias", "activation"})


def check_known_keys(model: type[ModelConfig], what: str) -> None:
    """Raise BadInput naming a key of the model that no table here has."""
    if unknown := model.model_fields.keys() - DECIDED_KEYS - IGNORED_KEYS.keys():
        raise BadInput(
            f"model.{min(unknown)}: {what} doesn't know this key; say what it means for weights "
            "in nanogpt/interop/architecture.py"
        )


def openai_values(name: str) -> Values:
    """OpenAI's GPT-2 of that size."""
    n_layer, n_head, n_embd = GPT2_SIZES[name]
    return gpt2_values(n_layer, n_head, n_embd, 1024, 50_257, bias=True, activation="gelu_tanh")


def gpt2_values(
    n_layer: int, n_head: int, n_embd: int, positions: int, vocab: int, bias: bool, activation: str
) -> Values:
    """A GPT-2 of any size."""
    return GPT2_DEFAULTS | {
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
        "block_size": positions,
        "vocab_size": vocab,
        "bias": bias,
        "activation": activation,
    }
