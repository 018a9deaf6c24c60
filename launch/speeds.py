"""Predict the training speed of a point from earlier runs that did the same work, else from the GPU's peak FLOPs.

Nothing is measured here: the submitting process has neither torch nor, on a cluster, the device.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import harmonic_mean
from typing import Any, Literal

from launch.status import read_last_rows
from nanogpt.config import DataConfig, Gpu, ModelConfig, Precision, Rule
from nanogpt.errors import LabError
from nanogpt.estimates.flops import flops_per_token
from nanogpt.estimates.gpu_specs import GPU_SPECS, find_gpu
from nanogpt.estimates.plan import MFU
from nanogpt.files import list_entries, mtime
from nanogpt.run_directory import RunDirectory

MAX_RUNS = 50  # newest runs that are read
MAX_FLOPS_RATIO = 10.0  # of two models' FLOPs per token; beyond it the speed of one says too little about the other
DeviceKind = Literal["cpu", "cuda", "mps"]


@dataclass(frozen=True)
class MeasuredWorkload:
    """The model, and how each rank trains it, as earlier runs record it."""

    model: ModelConfig
    """With its vocabulary size and without its name."""
    device: DeviceKind
    precision: Precision
    ranks: int
    micro: int
    """Sequences in a rank's micro-batch."""
    compile: bool
    recompute: bool
    shards: int
    """Number of ranks that the weights are split over; 1: every rank has all."""
    threads: int | None
    """CPU threads per rank; None: not set."""


@dataclass(frozen=True)
class PointWorkload(MeasuredWorkload):
    """The workload of a point that is to be trained."""

    rule: Rule
    """The optimizer's."""
    gpu: Gpu | None
    """The kind of GPU, if known."""
    ranks_per_node: int
    auto: bool
    """True if the training finds its micro-batch size itself."""
    share: int
    """Sequences per step and rank."""


@dataclass(frozen=True)
class RemainingWork:
    """Work left to do for one point."""

    run: Path
    work: PointWorkload
    tokens: int


@dataclass(frozen=True)
class MeasuredRun:
    """The workload of an earlier run and its speed."""

    path: Path
    device_name: str
    workload: MeasuredWorkload
    rate: float
    """Tokens per second inside training steps, all ranks together."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second of all ranks together, and its source: a run directory or the name of a GPU."""

    rate: float
    how: Literal["measured", "scaled", "assumed"]
    where: str


def without_label(model: ModelConfig, vocab_size: int) -> ModelConfig:
    """Return the model config without its name, so that equal networks compare equal."""
    return model.with_vocab(vocab_size).model_copy(update={"name": "custom"})


def predict_speed(point: PointWorkload, runs: list[MeasuredRun]) -> Speed | None:
    """Return the speed of the first of `runs` with the same work; else that of the run with the nearest model, scaled
    by FLOPs per token; else a share of the GPU's peak; None if nothing is known.
    """
    comparable = [run for run in runs if used_device_alike(run, point)]
    for run in comparable:
        if run.workload.model == point.model and (point.auto or run.workload.micro == point.micro):
            return Speed(run.rate, "measured", str(run.path))
    flops = flops_per_token(point.model)
    ratios = [(flops_per_token(run.workload.model) / flops, run) for run in comparable]
    near = [(ratio, run) for ratio, run in ratios if 1 / MAX_FLOPS_RATIO <= ratio <= MAX_FLOPS_RATIO]
    if near:
        ratio, run = min(near, key=lambda pair: max(pair[0], 1 / pair[0]))
        return Speed(run.rate * ratio, "scaled", str(run.path))
    if point.gpu and point.precision in ("fp16", GPU_SPECS[point.gpu].precision):
        return Speed(MFU * GPU_SPECS[point.gpu].tflops * 1e12 * point.ranks / flops, "assumed", point.gpu)
    return None


def used_device_alike(run: MeasuredRun, point: PointWorkload) -> bool:
    """Return whether a run used equal devices in the same way. bf16 and fp16 count as equally fast."""
    had = run.workload
    return (
        had.device == point.device
        and (point.gpu is None or find_gpu(run.device_name) is GPU_SPECS[point.gpu])
        and (had.precision == "fp32") == (point.precision == "fp32")
        and had.ranks == point.ranks
        and (had.compile, had.recompute, had.shards) == (point.compile, point.recompute, point.shards)
        and (point.threads is None or point.device != "cpu" or had.threads == point.threads)
    )


def read_speeds(folders: Iterable[Path], vocab_size: Callable[[DataConfig], int]) -> list[MeasuredRun]:
    """Return the speeds of the newest runs in these folders and in the studies in them, first folder first."""
    paths = dict.fromkeys(path for folder in folders for path in islice(find_timed_runs(folder), MAX_RUNS))
    return [run for path in islice(paths, MAX_RUNS) if (run := read_speed(path, vocab_size))]


def find_timed_runs(folder: Path, depth: int = 2) -> Iterator[Path]:
    """Yield run directories that have timings, newest first, in `folder` and in its folders that are no runs."""
    entries = list_entries(folder) if os.access(folder, os.R_OK | os.X_OK) else []
    folders = [path for path in entries if os.path.isdir(path) and not path.name.startswith(".")]
    for path in sorted(folders, key=mtime, reverse=True):
        if os.path.exists(path / "timing.jsonl"):
            yield path
        elif depth > 1 and not os.path.exists(path / "config.json"):
            yield from find_timed_runs(path, depth - 1)


def read_speed(path: Path, vocab_size: Callable[[DataConfig], int]) -> MeasuredRun | None:
    """Return the speed of a run's last start; None if it has no timings yet or its files can't be read."""
    run = RunDirectory(path)
    with suppress(LabError, OSError, ValueError, TypeError, LookupError):
        start = run.read_starts()[-1]
        facts: dict[str, Any] = start["arithmetic"]
        config = run.read_config()
        workload = MeasuredWorkload(
            model=without_label(config.model, vocab_size(config.data)),
            device=facts["device"],
            precision=facts["precision"],
            ranks=facts["ranks"],
            micro=facts["micro_batch_size"],
            compile=facts["compile"],
            recompute=facts.get("recompute", False),
            shards=facts["ranks"] if facts.get("strategy") == "fsdp" else 1,
            threads=facts["threads"],
        )
        return MeasuredRun(path, str(start["device"]), workload, mean_rate(path, start["from_step"]))
    return None


def mean_rate(path: Path, from_step: int) -> float:
    """Return the mean tokens per second over the last rows of timing.jsonl after `from_step`, without the first row
    (warm-up) unless it is the only one. Raises ValueError if there is none.
    """
    rates = [row["tokens_per_second"] for row in read_last_rows(path / "timing.jsonl") if row["step"] > from_step]
    rate = harmonic_mean(rates[1:] or rates)  # of an empty list: StatisticsError, a ValueError
    if not 0 < rate < float("inf"):
        raise ValueError
    return rate
