"""Learning rate and momentum as pure functions of the step, so checkpoints need no schedule state."""

import math

from torch.optim import Optimizer
from typing_extensions import assert_never

from nanogpt.config import OptimizerConfig, ScheduleConfig, TrainConfig


def lr_scale(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Return the factor of the learning rate at 0-based `step` of `steps`.

    Warm-up is (step + 1) / (warmup_steps + 1), so the first step has a positive learning rate.
    """
    warmup, low = schedule.warmup_steps, schedule.min_lr_ratio
    end = schedule.decay_steps or steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    match schedule.name:
        case "constant":
            return 1.0
        case "cosine" | "linear":
            begin = warmup
        case "wsd":
            begin = max(warmup, round(end * (1 - schedule.decay_fraction)))
        case _:
            assert_never(schedule.name)
    if step >= end:
        return low
    if step < begin:
        return 1.0
    done = (step - begin) / (end - begin)
    falling = 0.5 * (1 + math.cos(math.pi * done)) if schedule.name == "cosine" else 1 - done
    return low + (1 - low) * falling


def momentum_at(step: int, optimizer: OptimizerConfig) -> float:
    """Return Muon's momentum at 0-based `step`: linear from momentum_start over momentum_warmup_steps."""
    if step >= optimizer.momentum_warmup_steps:
        return optimizer.momentum
    done = step / optimizer.momentum_warmup_steps
    return optimizer.momentum_start + (optimizer.momentum - optimizer.momentum_start) * done


def set_rates(optimizer: Optimizer, step: int, steps: int, config: TrainConfig) -> float:
    """Set learning rate and momentum of all groups for 0-based `step` of `steps`. Return the scaled optimizer.lr."""
    scale = lr_scale(step, steps, config.schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale
        group["muon_momentum"] = momentum_at(step, config.optimizer)
    return config.optimizer.lr * scale
