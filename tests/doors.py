"""Every command with the config it takes."""

from typing import Any

from conf.launchers import LaunchConfig
from nanogpt.config import (
    BenchConfig,
    CompareConfig,
    CoordinatesConfig,
    EvaluateConfig,
    ExportConfig,
    GcConfig,
    ListConfig,
    PrepareConfig,
    ReportConfig,
    SampleConfig,
    ScalingConfig,
    SizingConfig,
    SyncConfig,
    TrainConfig,
    WatchConfig,
)

DOORS: dict[str, Any] = {
    "train": TrainConfig,
    "bench": BenchConfig,
    "prepare": PrepareConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "sync": SyncConfig,
    "sizing": SizingConfig,
    "coordinates": CoordinatesConfig,
    "scaling": ScalingConfig,
    "launch": LaunchConfig,
    "report": ReportConfig,
    "compare": CompareConfig,
    "list": ListConfig,
    "watch": WatchConfig,
    "gc": GcConfig,
}
