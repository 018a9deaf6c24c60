"""Every config key: its meaning, unit, range, default, and whether a run may change it.

`cli/entry.py` builds one of these frozen models from YAML files and overrides; everything after that is typed. Each key
is `fixed`, `guarded` or `free` (nanogpt/schema.py). Keys that aren't free can change the result, so they belong to the
run's identity, its `signature`. Units: `steps` are optimizer steps, `tokens` are target
tokens over all micro-batches and ranks, losses are nats per token. Sizes keep the names of GPT-2 and nanoGPT.
"""

from nanogpt.config.bench import BenchConfig, BenchSettings
from nanogpt.config.checkpoint import CheckpointConfig, ResumeConfig
from nanogpt.config.commands import (
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
from nanogpt.config.data import DataConfig
from nanogpt.config.evaluation import BenchmarkFiles, BenchmarkName, EvalConfig, EvaluationConfig
from nanogpt.config.hardware import Attention, CompileMode, Gpu, HardwareConfig, Precision
from nanogpt.config.model import Activation, ConvPlace, ModelConfig
from nanogpt.config.optimizer import OPTIMIZERS, OptimizerConfig, ParametrizationConfig, Rule
from nanogpt.config.schedule import ScheduleConfig
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
from nanogpt.config.tracking import TrackerName, TrackingConfig
from nanogpt.config.train import TrainConfig, auto_micro_batch_sizes, check_warmup_fits, divisors
from nanogpt.config.training import TrainingConfig

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
    "TrackerName",
    "TrackingConfig",
    "TrainConfig",
    "TrainedConfig",
    "TrainingConfig",
    "Waste",
    "WatchConfig",
    "auto_micro_batch_sizes",
    "check_warmup_fits",
    "divisors",
]
