"""Every knob of the platform: what it means, its unit, its range, its default, and whether a run may change it.

YAML and overrides become one of the frozen models of this room exactly once, at the door (`conf/door.py`); everything
after that is typed. Each knob is `fixed`, `guarded` or `free` (nanogpt/schema.py); what isn't free can change the
result and belongs to the run's identity, its `signature`. Units: `steps` are optimizer steps, `tokens` are target
tokens over all micro-batches and ranks, losses are nats per token. Sizes keep the names of GPT-2 and nanoGPT.
"""

from nanogpt.config.benchmark import BenchConfig, BenchSettings
from nanogpt.config.corpus import DataConfig
from nanogpt.config.doors import (
    ExportConfig,
    LawConfig,
    PrepareConfig,
    SampleConfig,
    ScalingConfig,
    SizingConfig,
    TaskConfig,
    TrainedConfig,
)
from nanogpt.config.machine import CheckpointConfig, Gpu, HardwareConfig, Precision, ResumeConfig, TrackingConfig
from nanogpt.config.network import ModelConfig
from nanogpt.config.recipe import EvalConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from nanogpt.config.run import TrainConfig, check_horizon, divisors

__all__ = [
    "BenchConfig",
    "BenchSettings",
    "CheckpointConfig",
    "DataConfig",
    "EvalConfig",
    "ExportConfig",
    "Gpu",
    "HardwareConfig",
    "LawConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Precision",
    "PrepareConfig",
    "ResumeConfig",
    "SampleConfig",
    "ScalingConfig",
    "ScheduleConfig",
    "SizingConfig",
    "TaskConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainedConfig",
    "TrainingConfig",
    "check_horizon",
    "divisors",
]
