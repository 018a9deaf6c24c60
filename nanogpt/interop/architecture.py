"""Keys of a ModelConfig that weights decide, with their values for GPT-2. No torch here.

Imports and exports refuse a key of ModelConfig that is in none of these tables, because its meaning for weights made
elsewhere isn't known.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nanogpt.config import ModelConfig
from nanogpt.errors import BadCheckpoint, BadInput, one_line
from nanogpt.schema import from_dict

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
IGNORED_KEYS = {  # keys that don't affect a trained network -> why
    "name": "a label",
    "vocab_multiple": "padding rows, which no token uses",
    "dropout": "training only",
    "init": "initialization only",
    "zero_init": "initialization only",
}
DECIDED_KEYS = (*GPT2_DEFAULTS, *SIZES, "bias", "activation")


def is_count(value: object) -> bool:
    """Return whether a value is a whole number above 0."""
    return type(value) is int and value > 0


def check_known_keys(model: type[ModelConfig], what: str) -> None:
    """Raise BadInput naming a key of the model that is in no table here."""
    if unknown := model.model_fields.keys() - DECIDED_KEYS - IGNORED_KEYS.keys():
        raise BadInput(
            f"model.{min(unknown)}: {what} doesn't know this key; say what it means for weights "
            "in nanogpt/interop/architecture.py"
        )


def openai_values(name: str) -> Values:
    """Return the values of OpenAI's GPT-2 of a size."""
    return gpt2_values((*GPT2_SIZES[name], 1024, 50_257), bias=True, activation="gelu_tanh")


def gpt2_values(sizes: Sequence[int], bias: bool, activation: str) -> Values:
    """Return the values of a GPT-2 whose SIZES are `sizes`."""
    return GPT2_DEFAULTS | dict(zip(SIZES, sizes, strict=True)) | {"bias": bias, "activation": activation}


def nanogpt_values(arguments: Mapping[str, Any], where: str) -> Values:
    """Return the values of nanoGPT's model_args. Raises BadCheckpoint naming a missing, unknown or invalid entry."""
    where = f"{where}: model_args"
    if lacking := [name for name in (*SIZES, "bias") if name not in arguments]:
        raise BadCheckpoint(f"{where} lacks {', '.join(lacking)}")
    if unknown := [name for name in arguments if name not in (*SIZES, "bias", "dropout")]:
        raise BadCheckpoint(f"{where} has {one_line(unknown[0])}, which nanoGPT's network doesn't have")
    for name in SIZES:
        if not is_count(arguments[name]):
            raise BadCheckpoint(f"{where}: {name}={one_line(arguments[name])}: allowed: a whole number above 0")
    if not isinstance(arguments["bias"], bool):
        raise BadCheckpoint(f"{where}: bias={one_line(arguments['bias'])}: allowed: true or false")
    values = gpt2_values([arguments[name] for name in SIZES], arguments["bias"], activation="gelu")
    try:
        from_dict(ModelConfig, values)
    except BadInput as error:
        raise BadCheckpoint(f"{where}: not a network that can be built here: {error}") from None
    return values
