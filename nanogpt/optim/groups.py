"""Which parameters are treated alike: by their names, each has a kind, and by its kind a learning rate and a decay."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch.nn import Parameter

from nanogpt.config import ModelConfig, OptimizerConfig
from nanogpt.errors import BadInput

Kind = Literal["embedding", "head", "matrix", "vector"]
EMBEDDING = re.compile(r"transformer\.w[tp]e\.weight")
MATRIX = re.compile(r"transformer\.h\.\d+\.(attn|mlp)\.(c_attn|c_proj|c_fc)\.weight")
Group = dict[str, Any]
"""One of torch's `param_groups`. Ours also have `peak_lr`; those of Muon `rows`, where its matrices are cut."""


class Network(Protocol):
    """What an optimizer needs to know of a model."""

    config: ModelConfig

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Each once, in order."""
        ...


def kind_of(name: str) -> Kind:
    """Of a parameter: an embedding (tied to the head or not), the head of its own, a hidden matrix, or all else.

    All else are norms' gains, biases, and the taps of short convolutions, a gain for each channel and tap.
    """
    if EMBEDDING.fullmatch(name):
        return "embedding"
    if name == "lm_head.weight":
        return "head"
    return "matrix" if MATRIX.fullmatch(name) else "vector"


@dataclass(frozen=True)
class Treatment:
    """What the parameters of one group have in common."""

    peak_lr: float
    weight_decay: float
    rows: tuple[int, ...] | None = None
    """Of Muon's matrices: the rows of each of the matrices that lie in one parameter; of all else None."""


def grouped(model: Network, config: OptimizerConfig, width: float = 1.0) -> list[Group]:
    """Parameters with the same treatment together, in the order of the model. Under AdamW all but vectors decay, and
    without rates of their own that makes nanoGPT's two groups; under Muon only matrices decay.

    `width` says how many times wider the model is than the one these rates are for (muP).
    """
    groups: dict[Treatment, Group] = {}
    for name, parameter in model.named_parameters():
        treatment = treatment_of(name, parameter, model.config, config, width)
        if treatment not in groups:
            about = {"lr": treatment.peak_lr, "peak_lr": treatment.peak_lr, "weight_decay": treatment.weight_decay}
            groups[treatment] = {"params": [], "rows": treatment.rows, "momentum": config.momentum, **about}
        groups[treatment]["params"].append(parameter)
    return list(groups.values())


def treatment_of(
    name: str, parameter: Parameter, model: ModelConfig, config: OptimizerConfig, width: float
) -> Treatment:
    """Raises BadInput for a hidden matrix that is none.

    Adam moves every weight by about its rate, whatever the gradient: what sums over many inputs must move the less the
    more there are (Yang et al. 2022, table 3). An orthogonalised update has that in it. Decay a step stays what it was.
    """
    kind, by_muon = kind_of(name), config.name != "adamw"
    own = {"embedding": config.embedding_lr, "head": config.head_lr, "matrix": None, "vector": config.vector_lr}[kind]
    decays = kind == "matrix" if by_muon else kind != "vector"
    if kind == "matrix" and by_muon and parameter.dim() != 2:
        shape = " x ".join(map(str, parameter.shape))
        raise BadInput(f"optimizer.name={config.name}: {name} is {shape}; a matrix is needed")
    rows = rows_of(name, len(parameter), model) if kind == "matrix" and by_muon else None
    slower = width if kind == "head" or (kind == "matrix" and not by_muon) else 1.0
    lr = config.lr if own is None else own
    return Treatment(lr / slower, config.weight_decay * slower if decays else 0.0, rows)


def rows_of(name: str, rows: int, model: ModelConfig) -> tuple[int, ...]:
    """How a hidden matrix of so many rows divides: into queries, keys and values; gate and values; or not at all."""
    if name.endswith("c_attn.weight"):
        return model.qkv_widths
    if name.endswith("c_fc.weight") and model.activation == "swiglu":
        return model.mlp_width, model.mlp_width
    return (rows,)
