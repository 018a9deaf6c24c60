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
from nanogpt.run_directory import RunDirectory

MAX_RUNS = 50  # that are looked at, the newest
MAX_FLOPS_RATIO = 10.0  # times more or fewer FLOPs a token: the speed of such a model says too little about another's
DeviceKind = Literal["cpu", "cuda", "mps"]
Vocabulary = Callable[[DataConfig], int]


@dataclass(frozen=True)
class PointWorkload:
    """Everything that the speed and memory of a training depend on."""

    model: ModelConfig
    """With its vocabulary and without its label."""
    rule: Rule
    """The optimizer's."""
    device: DeviceKind
    gpu: Gpu | None
    """Which GPU, when it is one and its kind is known."""
    precision: Precision
    ranks: int
    ranks_per_node: int
    micro: int
    """Sequences of a micro-batch, on each rank."""
    auto: bool
    """Whether the micro-batch will be found by trying."""
    share: int
    """Sequences of a step, on each rank."""
    compile: bool
    recompute: bool
    shards: int
    """Parts of the weights, each on a rank; 1: all of them have all."""
    threads: int | None
    """On each rank of a CPU, when it is said."""


@dataclass(frozen=True)
class MeasuredRun:
    """Speed of an earlier run, and what it ran on."""

    path: Path
    model: ModelConfig
    device: str
    name: str
    """The device's own name."""
    precision: str
    ranks: int
    micro: int
    compile: bool
    recompute: bool
    shards: int
    threads: int | None
    rate: float
    """Tokens a second inside training steps, of all ranks together."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second of all ranks together, and its source: a run directory or the name of a GPU."""

    rate: float
    how: Literal["measured", "scaled", "assumed"]
    where: str


def without_label(model: ModelConfig, vocab_size: int) -> ModelConfig:
    """Return the model config without its name, so that equal networks compare equal."""
    return model.with_vocab(vocab_size).model_copy(update={"name": "custom"})


def predict_speed(work: PointWorkload, runs: list[MeasuredRun]) -> Speed | None:
    """Return the speed of the first of `runs` with the same work; else that of the run with the nearest model, scaled
    by FLOPs per token; else a share of the GPU's peak; None if nothing is known.
    """
    alike = [run for run in runs if same_device(run, work)]
    for run in alike:
        if run.model == work.model and (work.auto or run.micro == work.micro):
            return Speed(run.rate, "measured", str(run.path))
    flops = flops_per_token(work.model)
    ratios = [(flops_per_token(run.model) / flops, run) for run in alike]
    if near := [
        (max(ratio, 1 / ratio), ratio, run) for ratio, run in ratios if 1 / MAX_FLOPS_RATIO <= ratio <= MAX_FLOPS_RATIO
    ]:
        _, ratio, run = min(near, key=lambda one: one[0])
        return Speed(run.rate * ratio, "scaled", str(run.path))
    if work.gpu and work.precision in ("fp16", GPU_SPECS[work.gpu].precision):
        return Speed(MFU * GPU_SPECS[work.gpu].tflops * 1e12 * work.ranks / flops, "assumed", work.gpu)
    return None


def same_device(run: MeasuredRun, work: PointWorkload) -> bool:
    """Return whether a run used equal devices in the same way. bf16 and fp16 count as equally fast."""
    return (
        run.device == work.device
        and (work.gpu is None or find_gpu(run.name) is GPU_SPECS[work.gpu])
        and (run.precision == "fp32") == (work.precision == "fp32")
        and run.ranks == work.ranks
        and (run.compile, run.recompute, run.shards) == (work.compile, work.recompute, work.shards)
        and (work.threads is None or work.device != "cpu" or run.threads == work.threads)
    )


def read_speeds(folders: Iterable[Path], vocabulary: Vocabulary) -> list[MeasuredRun]:
    """Return the speeds of the newest runs in these folders and in the studies in them, first folder first."""
    runs = dict.fromkeys(run for folder in folders for run in islice(find_timed_runs(folder), MAX_RUNS))
    return [found for run in islice(runs, MAX_RUNS) if (found := read_speed(run, vocabulary))]


def find_timed_runs(folder: Path, depth: int = 2) -> Iterator[Path]:
    """Yield run directories that have timings, newest first, in `folder` and in its folders that are no runs."""
    for path in list_newest_first(folder):
        if (path / "timing.jsonl").exists():
            yield path
        elif depth > 1 and not (path / "config.json").exists():
            yield from find_timed_runs(path, depth - 1)


def list_newest_first(folder: Path) -> list[Path]:
    """Return the folders in a folder, last modified first."""
    found: list[tuple[float, str]] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                if not entry.name.startswith(".") and entry.is_dir():
                    found.append((entry.stat().st_mtime, entry.name))
    return [folder / name for _, name in sorted(found, reverse=True)]


def read_speed(path: Path, vocabulary: Vocabulary) -> MeasuredRun | None:
    """Return the speed of a run's last start; None if it has no timings yet or its files can't be read."""
    run = RunDirectory(path)
    with suppress(LabError, OSError, ValueError, TypeError, LookupError):
        start = run.starts()[-1]
        facts: dict[str, Any] = start["arithmetic"]
        config = run.config()
        return MeasuredRun(
            path=path,
            model=without_label(config.model, vocabulary(config.data)),
            device=facts["device"],
            name=str(start["device"]),
            precision=facts["precision"],
            ranks=facts["ranks"],
            micro=facts["micro_batch_size"],
            compile=facts["compile"],
            recompute=facts.get("recompute", False),
            shards=facts["ranks"] if facts.get("strategy") == "fsdp" else 1,
            threads=facts["threads"],
            rate=mean_rate(path, start["from_step"]),
        )
    return None


def mean_rate(path: Path, from_step: int) -> float:
    """Return the mean tokens per second over the last rows of timing.jsonl after `from_step`, without the first row
    (warm-up) unless it is the only one. Raise ValueError if there is none.
    """
    rows = [row for row in read_last_rows(path / "timing.jsonl") if row["step"] > from_step]
    rates = [float(row["tokens_per_second"]) for row in rows]
    rate = harmonic_mean(rates[1:] or rates)  # of an empty list: StatisticsError, a ValueError
    if not 0 < rate < float("inf"):
        raise ValueError
    return rate
