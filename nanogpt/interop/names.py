"""Tensors under Hugging Face's names and layouts to ours, and back; no arithmetic but transposing, cutting and joining.

Ours are GPT-2's names with (out, in) matrices. C channels, V vocabulary, P vocabulary with its padding.
"""

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt.config import ModelConfig
from nanogpt.errors import BadCheckpoint, escaped

Tensors = dict[str, Tensor]

ROWS = ("transformer.wte.weight", "lm_head.weight")  # those with a row for each token
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # (in, out) in GPT-2
MASKS = (".attn.bias", ".attn.masked_bias")  # buffers in old files, not weights
WHOLE = {  # ours -> Llama's, outside the blocks
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
INSIDE = {  # of a block, one to one
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "mlp.c_proj": "mlp.down_proj",
}
JOINED = {  # of a block, ours -> those that it joins
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.c_fc": ("mlp.gate_proj", "mlp.up_proj"),
}


def from_gpt2(tensors: Tensors) -> Tensors:
    """GPT2LMHeadModel's or GPT2Model's tensors under our names."""
    ours: Tensors = {}
    for name, tensor in tensors.items():
        name = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        if not name.endswith(MASKS) and name != "lm_head.weight":  # the head is the embedding
            ours[name] = tensor.T if name.endswith(CONV1D) else tensor
    return ours


def to_gpt2(tensors: Tensors, model: ModelConfig) -> Tensors:
    """Our tensors as GPT2LMHeadModel has them: padding cut off, absent biases zero."""
    theirs: Tensors = {}
    for name, tensor in cut(tensors, model).items():
        theirs[name] = tensor.T.contiguous() if name.endswith(CONV1D) else tensor
        bias = name.removesuffix("weight") + "bias"
        if name.endswith("weight") and ".wte." not in name and ".wpe." not in name and bias not in tensors:
            theirs[bias] = tensor.new_zeros(tensor.shape[0])
    return theirs


def from_llama(tensors: Tensors) -> Tensors:
    """LlamaForCausalLM's or Qwen3ForCausalLM's tensors under our names. Raises BadCheckpoint where one is missing."""
    ours = {name: tensors[theirs] for name, theirs in WHOLE.items() if theirs in tensors}
    found = (re.match(r"model\.layers\.(\d+)\.", name) for name in tensors)
    for layer in sorted({int(match[1]) for match in found if match}):
        prefix, block = f"model.layers.{layer}.", f"transformer.h.{layer}."
        for kind in ("weight", "bias"):
            for name, other in INSIDE.items():
                if f"{prefix}{other}.{kind}" in tensors:
                    ours[f"{block}{name}.{kind}"] = tensors[f"{prefix}{other}.{kind}"]
            for name, others in JOINED.items():
                parts = [f"{prefix}{other}.{kind}" for other in others]
                there = [part for part in parts if part in tensors]
                if there and len(there) < len(parts):
                    raise BadCheckpoint(f"lacks the tensor {escaped(next(p for p in parts if p not in tensors))}")
                if there:
                    ours[f"{block}{name}.{kind}"] = torch.cat([tensors[part] for part in parts])
    return ours


def to_llama(tensors: Tensors, model: ModelConfig) -> Tensors:
    """Our tensors as LlamaForCausalLM or Qwen3ForCausalLM has them, padding cut off."""
    theirs: Tensors = {}
    sizes = {
        "attn.c_attn": model.qkv_widths,
        "mlp.c_fc": (model.mlp_width, model.mlp_width),
    }
    for name, tensor in cut(tensors, model).items():
        if name in WHOLE:
            theirs[WHOLE[name]] = tensor
            continue
        _, _, layer, inner = name.split(".", 3)
        part, _, kind = inner.rpartition(".")
        prefix = f"model.layers.{layer}."
        if part in INSIDE:
            theirs[f"{prefix}{INSIDE[part]}.{kind}"] = tensor
        else:
            for other, piece in zip(JOINED[part], tensor.split(sizes[part]), strict=True):
                theirs[f"{prefix}{other}.{kind}"] = piece.contiguous()
    return theirs


def with_gains(tensors: Tensors, model: ModelConfig) -> Tensors:
    """The tensors, and for a model whose norms have no gains those that change nothing: other programs have them."""
    if model.norm_weight:
        return tensors
    inner = {"ln_1": model.n_embd, "ln_2": model.n_embd}
    inner |= {"attn.q_norm": model.head_size, "attn.k_norm": model.head_size} if model.qk_norm else {}
    widths = {f"transformer.h.{i}.{name}": width for i in range(model.n_layer) for name, width in inner.items()}
    widths["transformer.ln_f"] = model.n_embd
    return tensors | {f"{name}.weight": torch.ones(width) for name, width in widths.items()}


def cut(tensors: Tensors, model: ModelConfig) -> Tensors:
    """Embedding and head with V rows instead of P."""
    return {name: t[: model.vocab_size].contiguous() if name in ROWS else t for name, t in tensors.items()}


def fitted(tensors: Tensors, model: ModelConfig) -> Tensors:
    """Our tensors with zeros in the rows of the padding, and as many positions as the model's context has."""
    resized = cut(tensors, model)
    for name in ROWS:
        if name in tensors:
            resized[name] = F.pad(resized[name], (0, 0, 0, model.padded_vocab_size - resized[name].shape[0]))
    if "transformer.wpe.weight" in tensors:
        resized["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][: model.block_size]
    return resized
