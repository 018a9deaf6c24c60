"""Saving checkpoints; resuming and forking runs."""

from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from nanogpt.config.types import Count
from nanogpt.fields import fixed, free
from nanogpt.schema import ConfigModel, field_error


class CheckpointConfig(ConfigModel):
    """Interval and number of checkpoints. The best evaluation, a stop signal and the end also save one."""

    every: Count = free(1000, "steps between checkpoints")
    keep: int = free(2, "number of newest checkpoints to keep, in addition to the best one", ge=2, le=1000)
    keep_every: Count | None = free(None, "also keep the checkpoints at multiples of this step; null: none")
    max_failed: int = free(
        3, "end the run after this many failed saves in a row, e.g. because the disk is full", ge=1, le=1000
    )
    stop_timeout_s: float = free(
        120.0,
        "seconds that a run may take to save after a stop signal (Ctrl-C, SIGTERM); then it ends without saving",
        ge=1,
        le=1e6,
        was="grace",
    )


class ResumeConfig(ConfigModel):
    """Continuing a run with changed settings, or forking it into a new run."""

    run: str | None = free(
        None, "run directory to continue with changed settings; null: the run that has exactly these settings"
    )
    fork: bool = free(
        False, "start a new run from a checkpoint of resume.run; any setting may change that its weights allow"
    )
    step: int | None = fixed(
        None, "resume.fork: step of the checkpoint to start from; null: the newest", ge=0, le=2**53, earlier=None
    )
    parent: str | None = fixed(None, "resume.fork: id of the parent run; filled in at the start", earlier=None)
    allow_change: Annotated[tuple[str, ...], Field(strict=False)] = free(
        (),
        "guarded keys that may change when resume.run continues, e.g. [optimizer.lr]; data: other data",
        allowed="a list of keys",
    )

    @model_validator(mode="after")
    def _check_fork(self) -> Self:
        if self.fork and self.run is None:
            raise field_error("resume.fork", "true", "needs the run to fork: resume.run=RUN")
        if self.step is not None and not self.fork and self.parent is None:
            raise field_error("resume.step", self.step, "chooses the checkpoint of a fork; give resume.fork=true too")
        return self
