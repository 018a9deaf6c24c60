"""Keys of the commands that work on existing runs."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from nanogpt.config.cost import CostConfig
from nanogpt.config.types import split_list
from nanogpt.fields import free
from nanogpt.json_output import FORMAT_HELP, OutputFormat
from nanogpt.run_state import State
from nanogpt.schema import ConfigModel

Metric = Literal["val_loss", "val_bpb", "best_val_loss", "best_val_bpb"]
RENAMED = {"final": "val_loss", "best": "best_val_loss"}
ReportFormat = Literal["md", "html", "pdf", "svg", "png", "csv", "tex", "json", "reference"]
PlotName = Literal["auto", "curves", "sensitivity", "heatmap", "parallel"]
Against = Literal["steps", "tokens", "flops", "time"]
METRIC_HELP = "val_loss: final, in nats per token; val_bpb: in bits per byte; best_…: lowest of all evaluations"
TOLERANCE_HELP = "difference, in the unit of the metric, that is equivalent to none; 0: none"
Waste = Literal["leftovers", "checkpoints", "code", "damaged", "attempts", "empty"]


def check_renamed(value: object) -> object:
    """Raise PydanticCustomError for a former name of a metric."""
    if isinstance(value, str) and value in RENAMED:
        raise PydanticCustomError("renamed", "{name}", {"name": RENAMED[value]})
    return value


ChosenMetric = Annotated[Metric, BeforeValidator(check_renamed)]


class TargetsConfig(ConfigModel):
    """The studies and runs that a command works on."""

    targets: Annotated[tuple[str, ...], Field(strict=False)] = free(
        (), "studies or runs: folders, their names in runs_dir, or globs; on the command line the words without '='"
    )
    runs_dir: str = free("runs", "folder of all run directories", min_length=1)


class ReportConfig(TargetsConfig):
    """Report of a study; without targets, of the one that changed last."""

    x: Against = free("steps", "horizontal axis of the loss curves")
    metric: ChosenMetric = free("val_loss", f"metric to rank by; {METRIC_HELP}")
    tolerance: float = free(0.0, TOLERANCE_HELP, ge=0)
    format: Annotated[tuple[ReportFormat, ...], BeforeValidator(split_list), Field(strict=False)] = free(
        ("md", "html"),
        "files to write: md, html: the report; pdf, svg, png: its plots; csv, tex: its tables; json: everything; "
        "reference: reference.json, the loss curve of each setting with four seeds or more",
        min_length=1,
    )
    plots: Annotated[tuple[PlotName, ...], BeforeValidator(split_list), Field(strict=False)] = free(
        ("auto",), "plots to draw; auto: loss curves and those that suit the varied keys; []: none"
    )
    reference: str | None = free(
        None,
        "reference curve to compare runs with: an experiment's name, or a study's folder; null: none",
        min_length=1,
    )
    out: str | None = free(None, "folder for all files; null: the study's folder", min_length=1)
    cost: CostConfig = free(CostConfig(), "prices of devices")


class CompareConfig(TargetsConfig):
    """Comparison of runs. Runs that differ only in their seed form a group; the first group is the baseline."""

    metric: ChosenMetric = free("val_loss", f"metric to compare; {METRIC_HELP}")
    tolerance: float = free(0.0, TOLERANCE_HELP, ge=0)
    out: str | None = free(None, "folder for compare.md, compare.html and plots; null: only print", min_length=1)
    cost: CostConfig = free(CostConfig(), "prices of devices")
    format: OutputFormat = free("text", FORMAT_HELP)


class NextConfig(TargetsConfig):
    """Runs that a study needs next; without targets, the one that changed last."""

    metric: ChosenMetric = free("val_loss", f"metric to rank by; {METRIC_HELP}")
    tolerance: float = free(0.0, TOLERANCE_HELP, ge=0)
    most: int = free(4, "number of proposals", ge=1, le=100)
    format: OutputFormat = free("text", FORMAT_HELP)


class ListConfig(TargetsConfig):
    """List of runs; without targets, of all in runs_dir."""

    state: State | None = free(None, "list only runs in this state; null: all")
    cost: CostConfig = free(CostConfig(), "prices of devices")
    format: OutputFormat = free("text", FORMAT_HELP)


class WatchConfig(TargetsConfig):
    """Live table of active runs; without targets, of all in runs_dir."""

    poll_s: float = free(5.0, "seconds between updates", ge=0.2, le=3600)


class GcConfig(TargetsConfig):
    """Files that are no longer needed; without targets, anywhere in runs_dir."""

    what: Annotated[tuple[Waste, ...], Field(strict=False)] = free(
        ("leftovers", "checkpoints", "code"), "kinds to delete; the command lists all kinds"
    )
    delete: bool = free(False, "delete them; false: print what would be deleted and the space that it frees")


class AbConfig(ConfigModel):
    """A/B test of two settings or two commits; without sides, the ledger of earlier tests."""

    sides: Annotated[tuple[str, ...], Field(strict=False)] = free(
        (),
        "base and change: settings of train.py, such as 'optimizer.lr=1e-3 model.dropout=0.1', or a commit; on the "
        "command line the first two words",
    )
    train: Annotated[tuple[str, ...], Field(strict=False)] = free(
        (), "settings of train.py that both sides share; on the command line all other words"
    )
    difference: float = free(0.01, "difference, in the unit of the metric, that the seeds must suffice to tell", gt=0)
    max_seeds: int = free(20, "most seeds of each side", ge=2, le=1000)
    hypothesis: str = free("", "sentence for the ledger", literal=True, max_length=1000)
    metric: ChosenMetric = free("val_loss", f"metric to compare; {METRIC_HELP}")
    runs_dir: str = free("runs", "folder of all run directories", min_length=1)
    format: OutputFormat = free("text", FORMAT_HELP)
