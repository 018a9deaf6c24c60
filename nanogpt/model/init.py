"""Weight initialisation: the distribution of each parameter follows from its name and shape."""

import math

import torch
from torch import nn

from nanogpt.config import ModelConfig

EMBEDDINGS = ("transformer.wte.weight", "transformer.wpe.weight")


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int, width_multiplier: float = 1.0) -> None:
    """Draw weights that depend only on the config, the seed and the width multiplier.

    init=gpt2 is nanoGPT's: normal(0, 0.02) for matrices, 0.02 / sqrt(2 * n_layer) for those that write to the residual
    stream (GPT-2 paper, section 2.3), zero biases, unit norms. init=fan_in: embeddings normal(0, 1), matrices uniform
    with deviation 0.5 / sqrt(inputs), the variance that keeps activations' size. Convolutions start at zero.

    muP (Yang et al. 2022, table 3) divides the variance of matrices by the width multiplier and that of an untied head
    by its square; embeddings are unchanged.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        zero = config.zero_init and name.endswith(("c_proj.weight", "lm_head.weight"))
        if zero or name.endswith("bias") or ".conv" in name:
            parameter.zero_()
        elif parameter.dim() < 2:
            parameter.fill_(1.0)
        elif uses_gpt2_init(config) or (name in EMBEDDINGS and not config.tie_weights):
            parameter.normal_(0.0, compute_std(name, parameter.shape[1], config, width_multiplier), generator=generator)
        else:
            bound = math.sqrt(3) * compute_std(name, parameter.shape[1], config, width_multiplier)
            parameter.uniform_(-bound, bound, generator=generator)


def uses_gpt2_init(config: ModelConfig) -> bool:
    """Return True for init=gpt2, False for init=fan_in."""
    return {"gpt2": True, "fan_in": False}[config.init]


def compute_std(name: str, inputs: int, config: ModelConfig, width_multiplier: float) -> float:
    """Return the standard deviation of a matrix with `inputs` inputs."""
    gpt2 = uses_gpt2_init(config)
    if name in EMBEDDINGS:
        return 0.02 if gpt2 else 0.5 / math.sqrt(inputs) if config.tie_weights else 1.0
    residual = math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 1.0
    # The deviation of fan_in needs no width multiplier: it already decreases with the number of inputs.
    std = 0.02 / residual / math.sqrt(width_multiplier) if gpt2 else 0.5 / math.sqrt(inputs)
    return std / math.sqrt(width_multiplier) if name == "lm_head.weight" else std
