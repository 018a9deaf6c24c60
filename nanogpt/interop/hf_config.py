"""Map Hugging Face's config.json to a ModelConfig's values: every key is mapped, harmless, or refused.

Three architectures are known: GPT-2 (`gpt2`), Llama (`llama`), and Llama with normalised queries and keys (`qwen3`). No
torch here: commands read the config before anything starts.
"""

import json
from collections.abc import Mapping
from typing import Any

from nanogpt.config import ModelConfig
from nanogpt.errors import BadCheckpoint, BadInput, hint, one_line
from nanogpt.interop.architecture import Values, gpt2_values, is_count
from nanogpt.schema import from_dict

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
HEADS = {  # model_type -> classes of this network; others have a head for another task
    "gpt2": ("GPT2LMHeadModel", "GPT2Model"),
    "llama": ("LlamaForCausalLM", "LlamaModel"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Model"),
}
HARMLESS = {  # reason -> keys that don't change the logits of a text
    "names and versions": """_name_or_path name_or_path transformers_version tokenizer_class
        transformers.js_config is_llama_config unsloth_version unsloth_fixed _commit_hash""",
    "stored type, which the file of weights has too": "torch_dtype dtype use_bfloat16",
    "kernels and memory, equal to rounding": """_attn_implementation _attn_implementation_autoset attn_implementation
        reorder_and_upcast_attn chunk_size_feed_forward torchscript gradient_checkpointing use_cache""",
    "initialization and dropout": """attn_pdrop embd_pdrop resid_pdrop attention_dropout hidden_dropout
        initializer_range""",
    "heads for other tasks; their tensors are refused": """summary_type summary_use_proj summary_activation
        summary_proj_to_labels summary_first_dropout id2label label2id num_labels _num_labels problem_type
        finetuning_task classifier_dropout predict_special_tokens""",
    "generation": """bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id
        decoder_start_token_id max_length min_length do_sample early_stopping num_beams num_beam_groups
        diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
        encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id
        remove_invalid_values suppress_tokens begin_suppress_tokens exponential_decay_length_penalty
        task_specific_params prefix is_decoder""",
    "outputs of a call": """output_attentions output_hidden_states output_scores output_past return_dict
        return_dict_in_generate use_return_dict tf_legacy_loss""",
}
ALL_HARMLESS = frozenset(key for keys in HARMLESS.values() for key in keys.split())
FIXED: dict[str, tuple[object, ...]] = {  # keys of every architecture, with the values of this network
    "quantization_config": (None,),
    "compression_config": (None,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": (None, {}),
    "n_special": (0,),
}


class ConfigReader:
    """Reads a config.json and refuses the keys that were not read."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content, self.where = content, where
        self.known_keys: set[str] = {"model_type", "architectures", *ALL_HARMLESS, *FIXED}

    def make_error(self, key: str, value: object, allowed: str) -> BadCheckpoint:
        """Return the error for a value."""
        return BadCheckpoint(f"{self.where}: {key}={one_line(format_json(value))}: allowed: {allowed}")

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or the default if the key is absent."""
        self.known_keys.add(key)
        return self.content.get(key, default)

    def get_count(self, *names: str) -> int:
        """Return a whole number above 0 that may have several names, which must agree. Raises BadCheckpoint."""
        self.known_keys.update(names)
        found = {name: self.content[name] for name in names if name in self.content}
        if not found:
            raise BadCheckpoint(f"{self.where}: lacks {names[0]}")
        for name, value in found.items():
            if not is_count(value):
                raise self.make_error(name, value, "a whole number above 0")
            if value != (first := next(iter(found.values()))):
                raise self.make_error(name, value, f"{first}, as {next(iter(found))}")
        return next(iter(found.values()))

    def get_flag(self, key: str, default: bool) -> bool:
        """Return true or false. Raises BadCheckpoint."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.make_error(key, value, "true or false")
        return value

    def check_value(self, key: str, *allowed: object) -> None:
        """Raise BadCheckpoint if the key is given with a value that isn't allowed."""
        value = self.get(key, allowed[0])
        if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in allowed):
            raise self.make_error(key, value, " or ".join(map(format_json, allowed)))

    def check_all_known(self) -> None:
        """Raise BadCheckpoint naming the first key that was not read."""
        for key, value in self.content.items():
            if key not in self.known_keys:
                kind = self.content["model_type"]
                raise BadCheckpoint(
                    f"{self.where}: {one_line(key)}={one_line(format_json(value))}: not a known key of "
                    f"model_type={kind}, so it may change the network; remove it if it doesn't"
                    f"{hint(key, self.known_keys)}"
                )


def format_json(value: object) -> str:
    """Return a value as config.json has it, but strings without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def from_hf_config(config: Mapping[str, Any], where: str) -> Values:
    """Return the values of a config.json. Raises BadCheckpoint naming a key that our networks don't have."""
    kind = config.get("model_type")
    readers = {"gpt2": read_gpt2, "llama": read_llama, "qwen3": read_llama}
    if not isinstance(kind, str) or kind not in readers:
        raise BadCheckpoint(f"{where}: model_type={one_line(kind)}: allowed: {', '.join(readers)}")
    keys = ConfigReader(config, where)
    classes = config.get("architectures")
    if not isinstance(classes, list | None) or any(name not in HEADS[kind] for name in classes or ()):
        raise keys.make_error("architectures", classes, f"a list of {', '.join(HEADS[kind])}")
    for key, allowed in FIXED.items():
        keys.check_value(key, *allowed)
    try:
        values = readers[kind](keys)
        keys.check_all_known()
        from_dict(ModelConfig, values)
    except (BadInput, ValueError) as error:
        raise BadCheckpoint(f"{where}: not a network that can be built here: {one_line(error, 300)}") from None
    return values


def read_gpt2(keys: ConfigReader) -> Values:
    """Return the values of a GPT2LMHeadModel or GPT2Model. Raises BadCheckpoint."""
    n_embd = keys.get_count("n_embd", "hidden_size")
    activation = keys.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise keys.make_error("activation_function", activation, ", ".join(ACTIVATIONS))
    keys.check_value("n_inner", None, 4 * n_embd)
    keys.check_value("layer_norm_epsilon", 1e-5)
    keys.check_value("scale_attn_weights", True)
    keys.check_value("scale_attn_by_inverse_layer_idx", False)
    n_layer, n_head = keys.get_count("n_layer", "num_hidden_layers"), keys.get_count("n_head", "num_attention_heads")
    positions = keys.get_count("n_positions", "n_ctx", "max_position_embeddings")
    sizes = (n_layer, n_head, n_embd, positions, keys.get_count("vocab_size"))
    values = gpt2_values(sizes, bias=True, activation=ACTIVATIONS[activation])
    return values | {"tie_weights": keys.get_flag("tie_word_embeddings", True)}


def read_llama(keys: ConfigReader) -> Values:
    """Return the values of a LlamaForCausalLM or Qwen3ForCausalLM; absent keys have transformers' defaults.

    Raises BadCheckpoint.
    """
    qwen = keys.get("model_type") == "qwen3"
    n_embd, n_head = keys.get_count("hidden_size"), keys.get_count("num_attention_heads")
    n_layer, bias = keys.get_count("num_hidden_layers"), keys.get_flag("attention_bias", False)
    n_kv_head = keys.get("num_key_value_heads", 32 if qwen else None)
    if n_kv_head is not None and not is_count(n_kv_head):
        raise keys.make_error("num_key_value_heads", n_kv_head, "a whole number above 0, or null")
    if qwen:
        keys.check_value("attention_bias", False)
        head_size = keys.get("head_dim", 128)
        if head_size != n_embd // n_head:
            raise keys.make_error("head_dim", head_size, f"{n_embd // n_head}, hidden_size / num_attention_heads")
        keys.known_keys.update(("sliding_window", "max_window_layers"))  # unused without use_sliding_window
    else:
        keys.check_value("head_dim", None, n_embd // n_head)
        keys.check_value("sliding_window", None)
        keys.check_value("pretraining_tp", 1, None)
        keys.check_value("rope_interleaved", False)
        keys.check_value("max_sequence_length", keys.get_count("max_position_embeddings"))
    keys.check_value("mlp_bias", bias)
    keys.check_value("use_sliding_window", False)
    keys.check_value("layer_types", None, ["full_attention"] * n_layer)
    keys.check_value("intermediate_size", ModelConfig(n_head=1, n_embd=n_embd, activation="swiglu").mlp_width)
    keys.check_value("hidden_act", "silu", "swish")
    keys.check_value("rms_norm_eps", 1e-6)
    sizes = (n_layer, n_head, n_embd, keys.get_count("max_position_embeddings"), keys.get_count("vocab_size"))
    return gpt2_values(sizes, bias=bias, activation="swiglu") | {
        "norm": "rmsnorm",
        "position": "rotary",
        "rope_base": read_rope_base(keys),
        "qk_norm": qwen,
        "n_kv_head": n_kv_head or n_head,
        "tie_weights": keys.get_flag("tie_word_embeddings", False),
    }


def read_rope_base(keys: ConfigReader) -> float:
    """Return the base of the wavelengths. Raises BadCheckpoint for a scaled form, or if keys disagree."""
    bases: dict[str, Any] = {} if "rope_theta" not in keys.content else {"rope_theta": keys.get("rope_theta")}
    keys.check_value("partial_rotary_factor", None, 1.0)
    for key in ("rope_parameters", "rope_scaling"):
        settings: Any = keys.get(key)
        if not isinstance(settings, dict | None):
            raise keys.make_error(key, settings, 'null or {"rope_type": "default"}')
        entries: dict[str, Any] = {str(name): value for name, value in (settings or {}).items()}
        kinds = [name for name in ("rope_type", "type") if name in entries]  # checked first: the others depend on them
        for name in dict.fromkeys([*kinds, *entries]):
            value: Any = entries[name]
            inner = f"{key}.{one_line(name)}"
            if name in ("rope_type", "type"):
                if value != "default":
                    raise keys.make_error(inner, value, "default")
            elif name == "rope_theta":
                bases[inner] = value
            elif name != "partial_rotary_factor" or value not in (None, 1.0):
                raise keys.make_error(inner, value, "only rope_type=default and rope_theta")
    for name, base in bases.items():
        if not isinstance(base, int | float) or isinstance(base, bool) or not 1 < base <= 1e9:
            raise keys.make_error(name, base, "a number above 1, at most 1e9")
        if base != (first := next(iter(bases.values()))):
            raise keys.make_error(name, base, f"{first}, as {next(iter(bases))}")
    return float(next(iter(bases.values()), 10_000.0))
