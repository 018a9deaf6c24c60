"""The learning-rate schedule."""

from typing import Literal

from nanogpt.config.types import Count
from nanogpt.fields import guarded
from nanogpt.schema import ConfigModel


class ScheduleConfig(ConfigModel):
    """Learning rate as a function of the step alone."""

    name: Literal["cosine", "linear", "constant", "wsd"] = guarded("cosine", "shape of the schedule after warm-up")
    warmup_steps: int = guarded(0, "steps of linear warm-up", ge=0, le=2**53)
    decay_steps: Count | None = guarded(None, "step at which the lowest learning rate is reached; null: the last step")
    decay_fraction: float = guarded(
        0.2, "wsd: final fraction of the steps, over which the learning rate decays", gt=0, le=1
    )
    min_lr_ratio: float = guarded(0.1, "lowest learning rate as a fraction of optimizer.lr", ge=0, le=1)
