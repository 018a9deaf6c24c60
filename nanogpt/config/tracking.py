"""Keys of `tracking`: the records of a run, and the trackers that receive them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from nanogpt.config.types import Count, Name
from nanogpt.fields import free
from nanogpt.schema import ConfigModel, field_error

TrackerName = Literal["wandb", "tensorboard", "trackio"]
TrackerNames = Annotated[tuple[TrackerName, ...], Field(strict=False)]
Tag = Annotated[str, Field(min_length=1, max_length=64)]


class TrackingConfig(ConfigModel):
    """Records of a run, and the experiment trackers that receive them."""

    name: Literal["local", TrackerName] = free("local", "label; local: records in the run directory only")
    log_every: Count = free(10, "steps between rows of metrics.jsonl")
    sample_tokens: int = free(
        200, "tokens of the text sample generated at each evaluation; 0: no sample", ge=0, le=100_000
    )
    reference: str | None = free(
        "auto",
        "reference curve to compare with: an experiment's name or a study; auto: of the same settings; null: none",
        min_length=1,
        earlier="auto",
    )
    trackers: TrackerNames = free((), "trackers that also receive the metrics, e.g. [wandb,tensorboard]", was="mirrors")
    mode: Literal["online", "offline", "disabled"] | None = free(
        None, "wandb: upload (online), keep in the run directory (offline) or neither; null: WANDB_MODE, else online"
    )
    project: Name | None = free(None, "wandb, trackio: project name; null: WANDB_PROJECT, else nanogpt-lab")
    entity: Name | None = free(None, "wandb: user or team; null: WANDB_ENTITY, else your default")
    group: str | None = free(
        None,
        "wandb, trackio: group of runs; null: name of the run directory's parent folder, unless that is runs",
        min_length=1,
        max_length=128,
    )
    job_type: str = free("train", "wandb: job type", min_length=1, max_length=64)
    tags: Annotated[tuple[Tag, ...], Field(strict=False)] = free((), "wandb: labels, e.g. [a,b]")
    timeout: float = free(20.0, "seconds to wait for a tracker to start, and to finish", ge=1, le=86_400)
    required: bool = free(False, "if a tracker can't start, end the run with exit code 5; false: print a warning")
    system_stats: bool = free(True, "wandb: also record GPU, CPU and memory usage")
    send_code: bool = free(
        False, "also send the git commit and the uncommitted changes of the code; secrets in them are hidden"
    )
    upload_checkpoint: bool = free(
        False, "wandb: upload the final weights as an artifact; raise tracking.timeout for large models"
    )

    @model_validator(mode="after")
    def _check_mode(self) -> Self:
        if self.mode is not None and "wandb" not in self.trackers:
            raise field_error("tracking.mode", self.mode, "is wandb's; give tracking=wandb too")
        return self
