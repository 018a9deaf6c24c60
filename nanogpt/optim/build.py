"""Build the optimizer that a config asks for."""

from torch.optim import Optimizer

from nanogpt.config import OPTIMIZERS, OptimizerConfig
from nanogpt.optim.declaration import Ranks
from nanogpt.optim.groups import Network, build_groups

FUSED_DEVICES = ("cpu", "cuda", "mps")


def build_optimizer(
    model: Network, config: OptimizerConfig, device_type: str, ranks: Ranks | None = None, width_multiplier: float = 1.0
) -> Optimizer:
    """Build the optimizer of a model's parameters, with fused kernels if the device has them.

    `ranks` share the work of a step; `width_multiplier` as in `build_groups`. Raises BadInput for a parameter that the
    optimizer can't update.
    """
    groups = build_groups(model, config, width_multiplier)
    return OPTIMIZERS[config.name].build(groups, config, ranks, device_type in FUSED_DEVICES)
