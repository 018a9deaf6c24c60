"""Predict time and memory of a sweep before it starts.

Estimates from model shapes and a speed that was measured or is labelled as assumed. Time is that of training steps
alone, as in nanogpt/estimates/plan.py. Needs no torch; fast for a thousand points.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from launch.forecast_memory import device_memory, format_range, memory_lines, peak_memory
from launch.resources import visible_gpus
from launch.speeds import DeviceKind, PointWorkload, RemainingWork, Speed, predict_speed, read_speeds, without_label
from launch.study import PlannedRun
from nanogpt.config import CostConfig, DataConfig, Gpu, HardwareConfig, Precision, TrainConfig
from nanogpt.console import format_command
from nanogpt.cost import Cost, add_costs, compute_cost
from nanogpt.data.dataset import expected_vocab_size
from nanogpt.errors import LabError, one_line
from nanogpt.estimates.flops import compute_total_steps
from nanogpt.estimates.gpu_specs import GPU_SPECS
from nanogpt.estimates.plan import MFU
from nanogpt.formatting import format_count, format_duration
from nanogpt.run_directory import newest_step


@dataclass(frozen=True)
class Forecast:
    """Predictions for points of which `at_once` run in parallel (None: unknown)."""

    points: list[RemainingWork]
    speeds: dict[PointWorkload, Speed | None]
    at_once: int | None
    here: bool = True
    """False: the points run on other machines."""
    notes: tuple[str, ...] = ()
    prices: CostConfig = field(default_factory=CostConfig)

    def lines(self) -> list[str]:
        """Return lines about time and memory."""
        lines = [*time_lines(self.points, self.speeds, self.at_once)] if self.points else []
        if words := self.total_cost.describe():
            lines.append(f"cost    about {words} of training for what is left")
        return [*lines, *memory_lines(self.points, self.at_once, self.here), *(f"note    {n}" for n in self.notes)]

    def json_fields(self) -> dict[str, Any]:
        """Return what `format=json` shows: predictions for each point, and the time of all."""
        durations = [self.duration(point) for point in self.points]
        known = [duration for duration in durations if duration is not None]
        whole = makespan(known, self.at_once) if self.at_once and known else sum(known)
        points = [
            {
                "run": point.run,
                "tokens_left": point.tokens,
                "tokens_per_s": (speed := self.speeds[point.work]) and speed.rate,
                "speed_source": speed and f"{speed.how}: {speed.where}",
                "time_s": duration,
                "cost": self.cost(point),
                "memory_bytes": peak_memory(point.work, available := device_memory(point.work, self.here)[0]),
                "available_bytes": available,
            }
            for point, duration in zip(self.points, durations, strict=True)
        ]
        time = whole if len(known) == len(points) else None
        counts = {"points": points, "at_once": self.at_once}
        return counts | {"time_s": time, "cost": self.total_cost, "notes": self.notes}

    def duration(self, point: RemainingWork) -> float | None:
        """Return the seconds that a point takes, or None if its speed is not known."""
        speed = self.speeds[point.work]
        return point.tokens / speed.rate if speed else None

    def cost(self, point: RemainingWork) -> Cost:
        work = point.work
        return compute_cost(self.duration(point), work.ranks, work.device, work.gpu or "", self.prices)

    @property
    def total_cost(self) -> Cost:
        return add_costs(map(self.cost, self.points))


def forecast(
    runs: Sequence[PlannedRun],
    gpu: Gpu | None,
    at_once: int | None,
    runs_dir: Path | None = None,
    here: bool = True,
) -> Forecast:
    """Return the forecast for the remaining work of `runs`, of which `at_once` run in parallel (None: unknown).

    `gpu` is the kind that hardware.device=auto or cuda gets, None if unknown. Speeds come from earlier runs beside the
    points, then in `runs_dir`. Points on CPUs share this machine's memory unless `here` is false. Errors are reported
    in the notes, never raised.
    """
    if not runs:
        return Forecast([], {}, at_once, here)
    # vocabulary size, and whether it is final
    vocabularies: Callable[[DataConfig], tuple[int, bool]] = cache(expected_vocab_size)  # pyright: ignore[reportAssignmentType]

    def vocab_size(data: DataConfig) -> int:
        return vocabularies(data)[0]

    try:
        points = find_remaining_work(runs, gpu, vocab_size, here and bool(visible_gpus()))
    except (LabError, OSError) as error:  # the data's files
        return Forecast([], {}, at_once, here, (f"neither time nor memory can be predicted: {one_line(error, 200)}",))
    folders = [runs[0].path.parent, *([runs_dir] if runs_dir else [])]
    measured = read_speeds(folders, vocab_size)
    speeds = {work: predict_speed(work, measured) for work in {point.work for point in points}}
    sizes = {vocabularies(run.config.data) for run in runs if run.config.model.vocab_size is None}
    guesses = [size for size, final in sorted(sizes) if not final]
    notes = (f"a vocabulary of {size:,} is assumed until the data is prepared" for size in guesses)
    return Forecast(points, speeds, at_once, here, tuple(notes), runs[0].config.cost)


def find_remaining_work(
    runs: Sequence[PlannedRun], gpu: Gpu | None, vocab_size: Callable[[DataConfig], int], gpus_here: bool
) -> list[RemainingWork]:
    """Return each point's work and the tokens it has yet to train on. Raises BadData, OSError."""
    works: dict[tuple[object, ...], PointWorkload] = {}
    points: list[RemainingWork] = []
    for path, config in ((run.path, run.config) for run in runs):
        key = (config.model, config.data, config.hardware, config.training.batch_tokens, config.optimizer.name)
        if key not in works:
            works[key] = build_workload(config, vocab_size(config.data), gpu, gpus_here)
        done = 0 if config.new_attempt else newest_step(path)
        steps = config.last_step(compute_total_steps(config, works[key].model)) - done
        points.append(RemainingWork(path, works[key], max(0, steps) * config.training.batch_tokens))
    return points


def build_workload(config: TrainConfig, vocab_size: int, gpu: Gpu | None, gpus_here: bool) -> PointWorkload:
    """Return what `config` gives each rank to do."""
    hardware = config.hardware
    ranks_per_node = hardware.devices or 1
    ranks = (hardware.nodes or 1) * ranks_per_node
    device = predict_device(hardware, gpu, gpus_here)
    gpu = gpu if device == "cuda" else None
    return PointWorkload(
        model=without_label(config.model, vocab_size),
        rule=config.optimizer.name,
        device=device,
        gpu=gpu,
        precision=predict_precision(hardware, device, gpu),
        ranks=ranks,
        ranks_per_node=ranks_per_node,
        micro=config.micro_batch_size(ranks),
        auto=hardware.micro_batch_size == "auto" and device == "cuda",
        share=config.batch_sequences // ranks,
        compile=hardware.must_compile or (hardware.compile == "auto" and device == "cuda"),
        recompute=hardware.activation_checkpointing,
        shards=config.shards(ranks),
        threads=hardware.threads,
    )


def predict_device(hardware: HardwareConfig, gpu: Gpu | None, gpus_here: bool) -> DeviceKind:
    if hardware.device.startswith("cuda") or (hardware.device == "auto" and (gpu or gpus_here)):
        return "cuda"
    return "mps" if hardware.device == "mps" else "cpu"


def predict_precision(hardware: HardwareConfig, device: DeviceKind, gpu: Gpu | None) -> Precision:
    """Return what hardware.precision=auto becomes on the device."""
    if hardware.precision != "auto":
        return hardware.precision
    return "fp32" if device != "cuda" else GPU_SPECS[gpu].precision if gpu else "bf16"


def time_lines(
    points: list[RemainingWork], speeds: dict[PointWorkload, Speed | None], at_once: int | None
) -> Iterator[str]:
    """Yield the time of one point and of all whose speed is known, and how many are unknown."""
    if known := [(point, speed) for point in points if (speed := speeds[point.work])]:
        durations = [point.tokens / speed.rate for point, speed in known]
        whole = f"about {format_range(durations, format_duration)} of training"
        if len(points) > 1:
            which = f"the {len(points)}" if len(known) == len(points) else f"{len(known)} of the {len(points)}"
            whole += f" for one point, {describe_total_time(durations, at_once, which)}"
        yield f"time    {whole} ({describe_sources([speed for _, speed in known])})"
    if unknown := len(points) - len(known):
        which = f" for {unknown} of {len(points)} points" if known else ""
        yield (
            f"time    not known{which}: no earlier run is comparable; {format_command('train')} dry_run=true "
            "measures it, with the settings of a point and where it will run"
        )


def describe_total_time(durations: list[float], at_once: int | None, which: str) -> str:
    if at_once is None:
        return f"{format_duration(sum(durations))} for {which} that are left if run one after the other"
    way = "one after the other" if at_once == 1 else f"{min(at_once, len(durations))} at once"
    return f"{format_duration(makespan(durations, at_once))} for {which} that are left, {way}"


def makespan(durations: list[float], at_once: int) -> float:
    """Return when the last point ends if the next one starts whenever one ends."""
    ends = [0.0] * min(at_once, len(durations))
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def describe_sources(speeds: list[Speed]) -> str:
    """Return e.g. `from 41k tok/s, measured in runs/x`; with counts if sources are of several kinds."""
    parts: list[str] = []
    kinds = Counter(speed.how for speed in speeds)
    for how, count in kinds.items():
        group = [speed for speed in speeds if speed.how == how]
        first, *others = dict.fromkeys(one_line(speed.where, 400) for speed in group)
        more = f" and {len(others)} more" if others else ""
        source = {
            "measured": f"measured in {first}{more}",
            "scaled": f"scaled by FLOPs per token from another model's, measured in {first}{more}",
            "assumed": f"{MFU:.0%} of {first}'s peak, assumed, which small models don't reach",
        }[how]
        number = f"{count} " if len(kinds) > 1 else ""
        parts.append(f"{number}from {format_range([speed.rate for speed in group], format_count)} tok/s, {source}")
    return "; ".join(parts)
