"""Where a run is computed, recorded and saved; nothing of it changes the result."""

from typing import Annotated, Literal

from pydantic import Field

from nanogpt.config.fields import Count
from nanogpt.schema import Section, free, guarded

Precision = Literal["fp32", "bf16", "fp16"]
Gpu = Literal[  # nanogpt/model/devices.py has what they can
    "b200",
    "gh200",
    "h200",
    "h100",
    "h100_nvl",
    "h100_pcie",
    "a100_80gb",
    "a100_40gb",
    "a800_80gb",
    "l40s",
    "l4",
    "a40",
    "rtx_a6000",
    "rtx_4090",
    "rtx_3090",
    "v100_32gb",
    "v100_16gb",
    "t4",
]


class HardwareConfig(Section):
    """The machine. Nothing here changes data, dropout or updates: the loss curve is the same up to rounding."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = free(
        "auto", "auto, cpu, cuda, cuda:N or mps"
    )
    devices: int | None = free(
        None, "ranks on this machine, one device each, started by this command; null: one, or torchrun's", ge=1, le=64
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = guarded(
        "auto", "of matrix products; auto: bf16 on GPU, else fp32"
    )
    micro_batch_size: Count | Literal["auto"] | None = free(
        None,
        "sequences per forward pass; null: those of up to 16,384 tokens; auto: on GPUs the most that fit, by trying",
    )
    compile: bool = free(False, "torch.compile the model")
    threads: int | None = free(None, "CPU threads of a rank; null: torch's choice, shared by the ranks", ge=1, le=1024)
    deterministic: bool = free(False, "kernels that give the same bits every time; on GPUs slower, CPUs are so anyway")
    timeout: float = free(
        120.0,
        "seconds without progress after which a rank gives up on the others; five times that at first",
        ge=1,
        le=1e6,
    )


class TrackingConfig(Section):
    """What is written and shown while training."""

    name: Literal["local"] = free("local", "metrics.jsonl, log, plots and samples in the run directory")
    log_every: Count = free(10, "steps between metrics rows")
    sample_tokens: int = free(200, "length of the sample written at each evaluation; 0: none", ge=0, le=100_000)


class CheckpointConfig(Section):
    """When the state is saved: at these steps, at each best evaluation, on a stop signal and at the end."""

    every: Count = free(1000, "steps between checkpoints")
    keep: int = free(2, "newest checkpoints kept, besides the best one", ge=2, le=1000)
    keep_every: Count | None = free(None, "checkpoints at multiples of this step are kept for good; null: none")
    max_failed: int = free(3, "saves in a row that may fail, e.g. on a full disk, before the run ends", ge=1, le=1000)
    grace: float = free(120.0, "seconds from a stop signal to the end of the process, whatever it does", ge=1, le=1e6)


class ResumeConfig(Section):
    """Continue a run with another config than it was made with."""

    run: str | None = free(None, "run directory to continue, whatever its config; null: the one of this config")
    allow_change: Annotated[tuple[str, ...], Field(strict=False)] = free(
        (), "guarded keys that may change, e.g. [optimizer.lr]; data: train on other data"
    )
