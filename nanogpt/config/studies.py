"""What the commands about runs that are there take."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from nanogpt.run_state import State
from nanogpt.schema import ConfigModel, free

Metric = Literal["val_loss", "val_bpb", "best_val_loss", "best_val_bpb"]
RENAMED = {"final": "val_loss", "best": "best_val_loss"}
Against = Literal["steps", "tokens", "flops", "time"]
METRIC_HELP = "validation loss at the end in nats per token, or bits per byte; best_…: the lowest of all evaluations"
Waste = Literal["leftovers", "checkpoints", "code", "damaged", "attempts", "empty"]


def check_renamed(value: object) -> object:
    """Refuse the names that metrics had before."""
    if isinstance(value, str) and value in RENAMED:
        raise PydanticCustomError("renamed", "{name}", {"name": RENAMED[value]})
    return value


ChosenMetric = Annotated[Metric, BeforeValidator(check_renamed)]


class TargetsConfig(ConfigModel):
    """Which runs a command is about."""

    targets: Annotated[tuple[str, ...], Field(strict=False)] = free(
        (), "studies or runs: folders, their names under runs_dir, globs; the words without '='"
    )
    runs_dir: str = free("runs", "folder of all run directories", min_length=1)


class ReportConfig(TargetsConfig):
    """The report of a study; without targets of the one that was written to last."""

    x: Against = free("steps", "what the loss curves are drawn against")
    metric: ChosenMetric = free("val_loss", f"what ranks: {METRIC_HELP}")
    out: str | None = free(None, "folder for report.md, report.html and plots; null: the study's", min_length=1)


class CompareConfig(TargetsConfig):
    """Runs side by side; those that differ in their seed alone are one side, the first given is compared with."""

    metric: ChosenMetric = free("val_loss", f"what is compared: {METRIC_HELP}")
    out: str | None = free(None, "folder for compare.md, compare.html and plots; null: only tell", min_length=1)


class ListConfig(TargetsConfig):
    """Every run; without targets all under runs_dir."""

    state: State | None = free(None, "only runs in this state")


class WatchConfig(TargetsConfig):
    """The runs that are on their way; without targets all under runs_dir."""

    poll_s: float = free(5.0, "seconds between looks", ge=0.2, le=3600)


class GcConfig(TargetsConfig):
    """What could be deleted; without targets under all of runs_dir."""

    what: Annotated[tuple[Waste, ...], Field(strict=False)] = free(
        ("leftovers", "checkpoints", "code"), "kinds of things to delete; all kinds are listed"
    )
    delete: bool = free(False, "delete them; else only say what would be, and how much it frees")
