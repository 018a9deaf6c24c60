"""Names and shapes of the tensors of a network as transformers stores them, and the check of a file against them.

Names have no prefix of the inner model: `h.0.attn.c_attn.weight`, `layers.0.…`. No torch here.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanogpt.config import ModelConfig
from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.interop.architecture import Values

Shape = tuple[int, ...]
Layout = dict[str, Shape]

PREFIXES = ("model", "transformer")  # of the inner model, at the beginning of a name
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of torch, anywhere
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
DTYPES = ("F32", "F16", "BF16", "F64", "float32", "float16", "bfloat16", "float64")
HEAD, EMBEDDING = "lm_head.weight", ("wte.weight", "embed_tokens.weight")
SHOWN = 5  # problems named in an error


@dataclass(frozen=True)
class StoredTensor:
    """Shape, type and file of a stored tensor."""

    shape: Shape
    dtype: str
    file: str


def expected_layout(values: Values, input_first: bool) -> Layout:
    """Return name -> shape of all tensors. `input_first`: GPT-2's matrices are (in, out), as in transformers."""
    return llama_layout(values) if values["position"] == "rotary" else gpt2_layout(values, input_first)


def gpt2_layout(values: Values, input_first: bool) -> Layout:
    """Return the tensors of GPT-2, named as in transformers and nanoGPT."""
    n_embd, vocab, bias = values["n_embd"], values["vocab_size"], values["bias"]
    layout: Layout = {"wte.weight": (vocab, n_embd), "wpe.weight": (values["block_size"], n_embd)}
    matrices = {
        "attn.c_attn": (3 * n_embd, n_embd),
        "attn.c_proj": (n_embd, n_embd),
        "mlp.c_fc": (4 * n_embd, n_embd),
        "mlp.c_proj": (n_embd, 4 * n_embd),
    }
    for layer in range(values["n_layer"]):
        for name, (outputs, inputs) in matrices.items():
            layout[f"h.{layer}.{name}.weight"] = (inputs, outputs) if input_first else (outputs, inputs)
            layout |= {f"h.{layer}.{name}.bias": (outputs,)} if bias else {}
    for norm in [f"h.{layer}.{name}" for layer in range(values["n_layer"]) for name in ("ln_1", "ln_2")] + ["ln_f"]:
        layout[f"{norm}.weight"] = (n_embd,)
        layout |= {f"{norm}.bias": (n_embd,)} if bias else {}
    return layout if values["tie_weights"] else layout | {HEAD: (vocab, n_embd)}


def llama_layout(values: Values) -> Layout:
    """Return the tensors of Llama; with `qk_norm` those of Qwen3."""
    n_embd, vocab, head = values["n_embd"], values["vocab_size"], values["n_embd"] // values["n_head"]
    inner = ModelConfig(n_head=1, n_embd=n_embd, activation="swiglu").mlp_width
    keys = values["n_kv_head"] * head
    matrices = {
        "self_attn.q_proj": (n_embd, n_embd),
        "self_attn.k_proj": (keys, n_embd),
        "self_attn.v_proj": (keys, n_embd),
        "self_attn.o_proj": (n_embd, n_embd),
        "mlp.gate_proj": (inner, n_embd),
        "mlp.up_proj": (inner, n_embd),
        "mlp.down_proj": (n_embd, inner),
    }
    gains = {"input_layernorm": n_embd, "post_attention_layernorm": n_embd}
    gains |= {"self_attn.q_norm": head, "self_attn.k_norm": head} if values["qk_norm"] else {}
    layout: Layout = {"embed_tokens.weight": (vocab, n_embd), "norm.weight": (n_embd,)}
    for layer in range(values["n_layer"]):
        for name, shape in matrices.items():
            layout[f"layers.{layer}.{name}.weight"] = shape
            layout |= {f"layers.{layer}.{name}.bias": shape[:1]} if values["bias"] else {}
        layout |= {f"layers.{layer}.{name}.weight": (width,) for name, width in gains.items()}
    return layout if values["tie_weights"] else layout | {HEAD: (vocab, n_embd)}


def plain_name(name: str) -> str:
    """Return a tensor's name without the parts that wrappers and the outer model add."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while parts and parts[0] in PREFIXES:
        parts.pop(0)
    return ".".join(parts)


def match_tensors(stored: Mapping[str, StoredTensor], layout: Layout, where: str) -> dict[str, str]:
    """Map the plain name of each tensor to its name in the file.

    A tied head and buffers are optional; their values are checked when they are read. Raises BadCheckpoint naming
    tensors that are repeated, unknown or missing, that have another shape than the config says, or that are quantized.
    """
    names: dict[str, str] = {}
    for name in stored:
        if (other := names.setdefault(plain_name(name), name)) != name:
            raise BadCheckpoint(f"{where}: holds {one_line(other)} and {one_line(name)}, which are one tensor")
    if HEAD in names and HEAD not in layout:
        layout = layout | {HEAD: next(layout[name] for name in EMBEDDING if name in layout)}
    problems = [f"lacks the tensor {name} ({format_shape(layout[name])})" for name in layout if name not in names]
    for name, original in names.items():
        found = stored[original]
        if name in layout and found.dtype not in DTYPES:
            problems.append(
                f"{one_line(original)} is stored as {one_line(found.dtype)}; allowed: floats of 16 bits or more"
            )
        elif name in layout and found.shape != layout[name]:
            problems.append(
                f"{one_line(original)} is {format_shape(found.shape)} in {found.file}, "
                f"and {format_shape(layout[name])} by {where}"
            )
        elif BUFFERS.fullmatch(name):
            continue
        elif name not in layout:
            problems.append(f"{found.file} holds {one_line(original)}, which this network doesn't have")
    check_problems(problems, where)
    return names


def check_problems(problems: Sequence[str], where: str) -> None:
    """Raise BadCheckpoint with the first problems of a file's tensors, if there are any."""
    if problems:
        more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise BadCheckpoint(f"{where}: its weights don't fit: {', '.join(problems[:SHOWN])}{more}")


def format_shape(shape: Sequence[int]) -> str:
    """Return `97x64`."""
    return "x".join(map(str, shape)) if shape else "a single number"


def expected_inv_freq(values: Values) -> list[float]:
    """Return the frequencies by which rotary embedding rotates the pairs of channels of a head."""
    size = values["n_embd"] // values["n_head"]
    return [math.pow(values["rope_base"], -2 * i / size) for i in range(size // 2)]
