"""Config keys: meaning, unit, allowed values, default, and whether a run that continues may change them.

`cli/sweep_request.py` builds these frozen models from YAML files and overrides. Each key is `fixed`, `guarded` or
`free` (nanogpt/fields.py); keys that aren't free can change the result and belong to the run's identity. Units: steps
are optimizer steps, tokens are target tokens over all micro-batches and ranks, losses are nats per token. Sizes keep
the names of GPT-2 and nanoGPT.
"""

# ruff: noqa: F401
# pyright: reportUnusedImport=false

import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from nanogpt.config.bench import BenchConfig, BenchSettings
from nanogpt.config.commands import (
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    PrepareConfig,
    SampleConfig,
    ServeConfig,
    SyncConfig,
    TaskConfig,
    TrainedConfig,
)
from nanogpt.config.cost import CostConfig
from nanogpt.config.data import DataConfig
from nanogpt.config.evaluation import BenchmarkFiles, BenchmarkName, EvalConfig
from nanogpt.config.hardware import Attention, CompileMode, Gpu, HardwareConfig, Precision
from nanogpt.config.model import Activation, ConvPlace, ModelConfig
from nanogpt.config.optimizer import OPTIMIZERS, OptimizerConfig, ParametrizationConfig, Rule
from nanogpt.config.planning import CoordinatesConfig, LawConfig, ScalingConfig, SizingConfig
from nanogpt.config.schedule import ScheduleConfig
from nanogpt.config.studies import (
    METRIC_HELP,
    TOLERANCE_HELP,
    AbConfig,
    Against,
    ChosenMetric,
    CompareConfig,
    GcConfig,
    ListConfig,
    Metric,
    NextConfig,
    PlotName,
    ReportConfig,
    TargetsConfig,
    Waste,
    WatchConfig,
)
from nanogpt.config.tracking import TrackerName, TrackingConfig
from nanogpt.config.train import TrainConfig, auto_micro_batch_sizes, check_warmup_fits, divisors
from nanogpt.schema import ConfigModel


class CallablePackage(ModuleType):
    """Lets `nanogpt.config("train", ["model=tiny"])` compose a config, although `nanogpt.config` is this package."""

    def __call__(self, command: str, overrides: Sequence[str] = ()) -> ConfigModel:
        return import_module("nanogpt").compose(command, overrides)


sys.modules[__name__].__class__ = CallablePackage
