"""Parameter groups: a parameter's name determines its kind, and the kind its learning rate and decay."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch.nn import Parameter

from nanogpt.config import OPTIMIZERS, ModelConfig, OptimizerConfig
from nanogpt.errors import BadInput
from nanogpt.optim.declaration import Group, Kind

EMBEDDING = re.compile(r"transformer\.w[tp]e\.weight")
MATRIX = re.compile(r"transformer\.h\.\d+\.(attn|mlp)\.(c_attn|c_proj|c_fc)\.weight")


class Network(Protocol):
    """A model, as far as an optimizer uses it."""

    config: ModelConfig

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield each parameter once, in the model's order."""
        ...


def parameter_kind(name: str) -> Kind:
    """Return a parameter's kind: embedding (tied to the head or not), untied head, hidden matrix, or vector.

    Vectors are gains, biases and the taps of short convolutions.
    """
    if EMBEDDING.fullmatch(name):
        return "embedding"
    if name == "lm_head.weight":
        return "head"
    return "matrix" if MATRIX.fullmatch(name) else "vector"


@dataclass(frozen=True)
class ParamGroupSpec:
    """Settings of a parameter group."""

    peak_lr: float
    weight_decay: float
    split_rows: tuple[int, ...] | None = None
    """Rows of each matrix in a parameter, for an optimizer that updates whole matrices; else None."""


def build_groups(model: Network, config: OptimizerConfig, width_multiplier: float = 1.0) -> list[Group]:
    """Group parameters with equal settings, in the model's order.

    `width_multiplier` is the model's width over the width for which the rates were tuned (muP).
    """
    groups: dict[ParamGroupSpec, Group] = {}
    for name, parameter in model.named_parameters():
        spec = compute_group_spec(name, parameter, model.config, config, width_multiplier)
        if spec not in groups:
            rates = {"lr": spec.peak_lr, "peak_lr": spec.peak_lr, "weight_decay": spec.weight_decay}
            groups[spec] = {"params": [], "split_rows": spec.split_rows, "muon_momentum": config.momentum, **rates}
        groups[spec]["params"].append(parameter)
    return list(groups.values())


def compute_group_spec(
    name: str, parameter: Parameter, model: ModelConfig, config: OptimizerConfig, width_multiplier: float
) -> ParamGroupSpec:
    """Return a parameter's group settings, which follow from its kind and the optimizer's declaration.

    muP divides the learning rate by the width multiplier and multiplies the decay by it, so that decay per step is
    unchanged. Raises BadInput if the optimizer needs a matrix and the parameter has another shape.
    """
    kind, declaration = parameter_kind(name), OPTIMIZERS[config.name]
    own = {"embedding": config.embedding_lr, "head": config.head_lr, "matrix": None, "vector": config.vector_lr}[kind]
    rows = None
    if kind == "matrix" and declaration.whole_matrices:
        if parameter.dim() != 2:
            shape = " x ".join(map(str, parameter.shape))
            raise BadInput(f"optimizer.name={config.name}: {name} is {shape}; a matrix is needed")
        rows = compute_split_rows(name, len(parameter), model)
    divisor = width_multiplier if kind in declaration.width_scaled else 1.0
    decay = config.weight_decay * divisor if kind in declaration.decayed else 0.0
    return ParamGroupSpec((config.lr if own is None else own) / divisor, decay, rows)


def compute_split_rows(name: str, rows: int, model: ModelConfig) -> tuple[int, ...]:
    """Return the rows of queries, keys and values in c_attn, of gate and values in c_fc, else all rows."""
    if name.endswith("c_attn.weight"):
        return model.qkv_widths
    if name.endswith("c_fc.weight") and model.is_gated:
        return model.mlp_width, model.mlp_width
    return (rows,)
