"""Every knob of the platform: what it means, its unit, its range, its default, and whether a run may change it.

YAML and overrides become one of the frozen models of this room exactly once, at the door (`conf/door.py`); everything
after that is typed. Each knob is `fixed`, `guarded` or `free` (nanogpt/schema.py); what isn't free can change the
result and belongs to the run's identity, its `signature`. Units: `steps` are optimizer steps, `tokens` are target
tokens over all micro-batches and ranks, losses are nats per token. Sizes keep the names of GPT-2 and nanoGPT.
"""

from nanogpt.config.benchmark import BenchConfig, BenchSettings
from nanogpt.config.corpus import DataConfig
from nanogpt.config.doors import (
    CoordinatesConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    LawConfig,
    PrepareConfig,
    SampleConfig,
    ScalingConfig,
    SizingConfig,
    SyncConfig,
    TaskConfig,
    TrainedConfig,
)
from nanogpt.config.evaluation import BenchmarkFiles, BenchmarkName, EvaluationConfig
from nanogpt.config.machine import (
    Attention,
    CheckpointConfig,
    CompileMode,
    Gpu,
    HardwareConfig,
    MirrorName,
    Precision,
    ResumeConfig,
    TrackingConfig,
)
from nanogpt.config.network import Activation, ConvPlace, ModelConfig
from nanogpt.config.recipe import (
    OPTIMIZERS,
    EvalConfig,
    OptimizerConfig,
    ParametrizationConfig,
    Rule,
    ScheduleConfig,
    TrainingConfig,
)
from nanogpt.config.run import TrainConfig, auto_sizes, check_horizon, divisors
from nanogpt.config.studies import (
    METRIC_HELP,
    Against,
    ChosenMetric,
    CompareConfig,
    GcConfig,
    ListConfig,
    Metric,
    ReportConfig,
    TargetsConfig,
    Waste,
    WatchConfig,
)

__all__ = [
    "METRIC_HELP",
    "OPTIMIZERS",
    "Activation",
    "Against",
    "Attention",
    "BenchConfig",
    "BenchSettings",
    "BenchmarkFiles",
    "BenchmarkName",
    "CheckpointConfig",
    "ChosenMetric",
    "CompareConfig",
    "CompileMode",
    "ConvPlace",
    "CoordinatesConfig",
    "DataConfig",
    "DoctorConfig",
    "EvalConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "ExportConfig",
    "GcConfig",
    "Gpu",
    "HardwareConfig",
    "LawConfig",
    "ListConfig",
    "Metric",
    "MirrorName",
    "ModelConfig",
    "OptimizerConfig",
    "ParametrizationConfig",
    "Precision",
    "PrepareConfig",
    "ReportConfig",
    "ResumeConfig",
    "Rule",
    "SampleConfig",
    "ScalingConfig",
    "ScheduleConfig",
    "SizingConfig",
    "SyncConfig",
    "TargetsConfig",
    "TaskConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainedConfig",
    "TrainingConfig",
    "Waste",
    "WatchConfig",
    "auto_sizes",
    "check_horizon",
    "divisors",
]
