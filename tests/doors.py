"""Every command with the config it takes."""

from typing import Any

from nanogpt.config import (
    BenchConfig,
    EvaluateConfig,
    ExportConfig,
    PrepareConfig,
    SampleConfig,
    ScalingConfig,
    SizingConfig,
    TrainConfig,
)

DOORS: dict[str, Any] = {
    "train": TrainConfig,
    "bench": BenchConfig,
    "prepare": PrepareConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "sizing": SizingConfig,
    "scaling": ScalingConfig,
}
