"""When checkpoints are saved, and how a run is resumed or forked."""

from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from nanogpt.config.types import Count
from nanogpt.schema import ConfigModel, field_error, fixed, free


class CheckpointConfig(ConfigModel):
    """When the state is saved: at these steps, at each best evaluation, on a stop signal and at the end."""

    every: Count = free(1000, "steps between checkpoints")
    keep: int = free(2, "number of newest checkpoints to keep, besides the best", ge=2, le=1000)
    keep_every: Count | None = free(None, "also keep every checkpoint at a multiple of this step; null: none")
    max_failed: int = free(3, "end the run after this many failed saves in a row, e.g. on a full disk", ge=1, le=1000)
    stop_timeout_s: float = free(
        120.0,
        "seconds after a stop signal at which the process ends, even if it is still saving",
        ge=1,
        le=1e6,
        was="grace",
    )


class ResumeConfig(ConfigModel):
    """Continue a run with another config than it was made with."""

    run: str | None = free(
        None, "run directory to continue with this config; null: the run that this config identifies"
    )
    fork: bool = free(
        False, "start a new run from a copy of resume.run's checkpoint, with any settings that fit its weights"
    )
    step: int | None = fixed(
        None, "resume.fork: step of the checkpoint; null: the newest", ge=0, le=2**53, earlier=None
    )
    parent: str | None = fixed(
        None, "resume.fork: id of the run that this one was forked from; filled in at the start", earlier=None
    )
    allow_change: Annotated[tuple[str, ...], Field(strict=False)] = free(
        (), "guarded keys that may change, e.g. [optimizer.lr]; data: train on other data"
    )

    @model_validator(mode="after")
    def _fork_of_a_run(self) -> Self:
        if self.fork and self.run is None:
            raise field_error("resume.fork", "true", "needs the run to fork: resume.run=RUN")
        if self.step is not None and not self.fork and self.parent is None:
            raise field_error("resume.step", self.step, "chooses the checkpoint of a fork; give resume.fork=true too")
        return self
