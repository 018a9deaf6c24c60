"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from nanogpt.config import ScheduleConfig


def lr_scale(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """The learning rate of 0-based `step` as a share of optimizer.lr, in a run of `steps` steps.

    Warm-up rises as (step + 1) / (warmup_steps + 1), so that the first step already moves.
    """
    warmup, low = schedule.warmup_steps, schedule.min_lr_ratio
    end = schedule.decay_steps or steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.name == "constant":
        return 1.0
    if step >= end:
        return low
    begin = warmup if schedule.name != "wsd" else max(warmup, round(end * (1 - schedule.decay_fraction)))
    if step < begin:
        return 1.0
    done = (step - begin) / (end - begin)
    falling = 0.5 * (1 + math.cos(math.pi * done)) if schedule.name == "cosine" else 1 - done
    return low + (1 - low) * falling
