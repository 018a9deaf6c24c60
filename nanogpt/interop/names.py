"""Convert tensors between this project's names and shapes and those of transformers, and check their values.

The only arithmetic is transposing, cutting and joining. Ours are GPT-2's names with (out, in) matrices. C channels, V
vocabulary, P vocabulary with its padding.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt.config import ModelConfig
from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.interop.architecture import Values
from nanogpt.interop.layout import BUFFERS, EMBEDDING, HEAD, expected_inv_freq

Tensors = dict[str, Tensor]

ROWS = ("transformer.wte.weight", "lm_head.weight")  # those with a row for each token
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # (in, out) in GPT-2
WHOLE = {  # ours -> Llama's, outside the blocks
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
INSIDE = {  # in a block, one to one
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "mlp.c_proj": "mlp.down_proj",
}
JOINED = {  # in a block, ours -> those that it joins
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.c_fc": ("mlp.gate_proj", "mlp.up_proj"),
}


def convert_tensors(
    stored: Mapping[str, Tensor], names: Mapping[str, str], values: Values, where: str, input_first: bool
) -> Tensors:
    """Return a file's tensors under our names, as fp32; `names` maps plain names to stored ones.

    Raises BadCheckpoint naming a tensor that isn't finite, a tied head that differs from the embedding, and rotary
    frequencies that differ from those of the config.
    """
    weights: Tensors = {}
    for name, original in names.items():
        tensor = stored[original]
        if BUFFERS.fullmatch(name):  # GPT-2's masks have no effect; transformers ignores them too
            if name.endswith("inv_freq"):
                check_frequencies(tensor, values, f"{where}: {one_line(original)}")
        elif not tensor.isfinite().all():
            raise BadCheckpoint(f"{where}: {one_line(original)} is not finite")
        else:
            weights[name] = tensor.float()
    if values["tie_weights"] and HEAD in weights:
        head = weights.pop(HEAD)
        if not torch.equal(head, next(weights[name] for name in EMBEDDING if name in weights)):
            raise BadCheckpoint(
                f"{where}: {one_line(names[HEAD])} differs from the token embedding, but config.json ties them; "
                "tie_word_embeddings=false uses it, a file without it uses the embedding"
            )
    return from_llama(weights) if values["position"] == "rotary" else from_gpt2(weights, input_first)


def check_frequencies(tensor: Tensor, values: Values, where: str) -> None:
    """Raise BadCheckpoint if the rotary frequencies in an old file differ from those of its config."""
    expected = torch.tensor(expected_inv_freq(values))
    if tensor.shape != expected.shape or not torch.allclose(tensor.float(), expected, rtol=0.01):
        raise BadCheckpoint(f"{where}: differs from the frequencies of rope_theta={values['rope_base']:g}")


def from_gpt2(tensors: Tensors, input_first: bool) -> Tensors:
    """Return GPT-2's tensors, given by plain names, under our names. `input_first`: its matrices are (in, out)."""
    ours: Tensors = {}
    for name, tensor in tensors.items():
        full = name if name.startswith("lm_head.") else f"transformer.{name}"
        ours[full] = tensor.T if input_first and name.endswith(CONV1D) else tensor
    return ours


def to_gpt2(tensors: Tensors, model: ModelConfig) -> Tensors:
    """Return our tensors as GPT2LMHeadModel has them: padding cut off, absent biases zero."""
    theirs: Tensors = {}
    for name, tensor in cut_padding(tensors, model).items():
        theirs[name] = tensor.T.contiguous() if name.endswith(CONV1D) else tensor
        bias = name.removesuffix("weight") + "bias"
        has_bias = not any(part in name for part in ("wte.", "wpe.", "lm_head."))
        if name.endswith("weight") and has_bias and bias not in tensors:
            theirs[bias] = tensor.new_zeros(tensor.shape[0])
    return theirs


def from_llama(tensors: Tensors) -> Tensors:
    """Return the tensors of Llama or Qwen3, given by plain names and complete, under our names."""
    plain = {theirs.removeprefix("model."): name for name, theirs in WHOLE.items()}
    inside = {theirs: name for name, theirs in INSIDE.items()}
    ours: Tensors = {}
    for name, tensor in tensors.items():
        if name in plain:
            ours[plain[name]] = tensor
            continue
        _, layer, inner = name.split(".", 2)
        part, _, kind = inner.rpartition(".")
        if part in inside:
            ours[f"transformer.h.{layer}.{inside[part]}.{kind}"] = tensor
            continue
        joined, others = next((name, others) for name, others in JOINED.items() if part in others)
        if part == others[0]:
            parts = [tensors[f"layers.{layer}.{other}.{kind}"] for other in others]
            ours[f"transformer.h.{layer}.{joined}.{kind}"] = torch.cat(parts)
    return ours


def to_llama(tensors: Tensors, model: ModelConfig) -> Tensors:
    """Return our tensors as LlamaForCausalLM or Qwen3ForCausalLM has them, padding cut off."""
    theirs: Tensors = {}
    sizes = {"attn.c_attn": model.qkv_widths, "mlp.c_fc": (model.mlp_width, model.mlp_width)}
    for name, tensor in cut_padding(tensors, model).items():
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


def add_norm_gains(tensors: Tensors, model: ModelConfig) -> Tensors:
    """Return the tensors, with gains of 1 added for a model without norm gains, because other programs have them."""
    if model.norm_affine:
        return tensors
    inner = {"ln_1": model.n_embd, "ln_2": model.n_embd}
    inner |= {"attn.q_norm": model.head_size, "attn.k_norm": model.head_size} if model.qk_norm else {}
    widths = {f"transformer.h.{i}.{name}": width for i in range(model.n_layer) for name, width in inner.items()}
    widths["transformer.ln_f"] = model.n_embd
    return tensors | {f"{name}.weight": torch.ones(width) for name, width in widths.items()}


def cut_padding(tensors: Tensors, model: ModelConfig) -> Tensors:
    """Return the tensors with V rows instead of P in embedding and head."""
    return {name: t[: model.vocab_size].contiguous() if name in ROWS else t for name, t in tensors.items()}


def fit_to_model(tensors: Tensors, model: ModelConfig) -> Tensors:
    """Return the tensors with zeros as padding rows, and with positions cut to the model's context.

    Tensors with another number of rows than V are unchanged; the check that follows reports them.
    """
    resized = dict(tensors)
    for name in ROWS:
        if name in tensors and tensors[name].shape[0] == model.vocab_size:
            resized[name] = F.pad(tensors[name], (0, 0, 0, model.padded_vocab_size - tensors[name].shape[0]))
    if "transformer.wpe.weight" in tensors:
        resized["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][: model.block_size]
    return resized
