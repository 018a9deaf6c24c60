"""Predict time and memory of a sweep before it starts.

Estimates from model shapes and a speed that was measured or is labelled as assumed. Time is that of training steps
alone, as in nanogpt/estimates/plan.py. Needs no torch; fast for a thousand points.
"""

import heapq
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import gcd
from pathlib import Path
from typing import TypeVar

from launch.resources import visible_gpus
from launch.speeds import DeviceKind, PointWorkload, Speed, predict_speed, read_speeds, without_label
from launch.study import PlannedRun
from nanogpt.config import DataConfig, Gpu, HardwareConfig, Precision, TrainConfig, auto_micro_batch_sizes, divisors
from nanogpt.console import format_command
from nanogpt.data.dataset import expected_vocab_size
from nanogpt.errors import LabError, one_line
from nanogpt.estimates.flops import compute_total_steps
from nanogpt.estimates.gpu_specs import GPU_SPECS
from nanogpt.estimates.memory import USABLE_SHARE, estimate_training_memory
from nanogpt.estimates.plan import MFU
from nanogpt.formatting import format_count, format_duration
from nanogpt.run_directory import newest_step

Value = TypeVar("Value")


@dataclass(frozen=True)
class RemainingWork:
    """Work left to do for one point."""

    run: Path
    work: PointWorkload
    tokens: int


def forecast(
    runs: Sequence[PlannedRun],
    gpu: Gpu | None,
    at_once: int | None,
    runs_dir: Path | None = None,
    here: bool = True,
) -> list[str]:
    """Return lines about the remaining work of `runs`, of which `at_once` run in parallel (None: unknown).

    `gpu` is the kind that hardware.device=auto or cuda gets, None if unknown. Speeds come from earlier runs beside the
    points, then in `runs_dir`. Points on CPUs share this machine's memory unless `here` is false. Errors are reported
    in the lines, never raised.
    """
    if not runs:
        return []
    # vocabulary size, and whether it is final
    vocabularies: Callable[[DataConfig], tuple[int, bool]] = cache(expected_vocab_size)  # pyright: ignore[reportAssignmentType]

    def vocab_size(data: DataConfig) -> int:
        return vocabularies(data)[0]

    try:
        points = find_remaining_work(runs, gpu, vocab_size, here and bool(visible_gpus()))
    except (LabError, OSError) as error:  # the data's files
        return [f"note    neither time nor memory can be predicted: {one_line(error, 200)}"]
    folders = [runs[0].path.parent, *([runs_dir] if runs_dir else [])]
    measured = read_speeds(folders, vocab_size)
    speeds = {work: predict_speed(work, measured) for work in {point.work for point in points}}
    sizes = {vocabularies(run.config.data) for run in runs if run.config.model.vocab_size is None}
    lines = [*time_lines(points, speeds, at_once), *memory_lines(points, at_once, here)]
    guesses = [size for size, final in sorted(sizes) if not final]
    return lines + [f"note    a vocabulary of {size:,} is assumed until the data is prepared" for size in guesses]


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
    known = [(point, speed) for point in points if (speed := speeds[point.work])]
    if known:
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


def memory_lines(points: list[RemainingWork], at_once: int | None, here: bool) -> Iterator[str]:
    """Yield a line for each kind of device."""
    for device in sorted({point.work.device for point in points}):
        group = [point for point in points if point.work.device == device]
        available, whose = device_memory(group[0].work, here)
        needs = [peak_memory(point.work, available) for point in group]
        if available is None:
            yield f"memory  about {format_range(needs, format_bytes)}{memory_unit(group)}; {whose}"
            continue
        most = USABLE_SHARE * available
        if too_large := [need for need in needs if need > most]:
            largest = group[needs.index(max(needs))]
            subject = f"{len(too_large)} of {len(group)} points need" if len(group) > 1 else "the point needs"
            yield (
                f"memory  {subject} about {format_range(too_large, format_bytes)}{memory_unit(group)}, more than "
                f"{USABLE_SHARE:.0%} of the {format_bytes(available)} {whose}: {suggest_fix(group, available)} "
                f"(largest: {one_line(largest.run.name)})"
            )
        else:
            crowding = describe_crowding(needs, most, at_once) if device != "cuda" else ""
            size = f"{format_range(needs, format_bytes)}{memory_unit(group)}"
            yield f"memory  about {size} of the {format_bytes(available)} {whose}; fits{crowding}"


def device_memory(work: PointWorkload, here: bool) -> tuple[int | None, str]:
    """Return the memory of the GPU or of this machine in bytes and whose it is; or None and the reason."""
    if work.gpu:
        return GPU_SPECS[work.gpu].memory, f"of {work.gpu}"
    if work.device == "cuda":
        return None, "the kind of GPU isn't known, so neither is whether it fits"
    if not here:
        return None, "the memory of the machines isn't known"
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "of this machine"
    except (OSError, ValueError):
        return None, "the memory of this machine isn't known"


@cache
def peak_memory(work: PointWorkload, available: int | None = None, micro: int | None = None) -> int:
    """Return the bytes of a GPU, or of a machine whose ranks share its memory. An automatic micro-batch is the largest
    that fits, or 1.
    """
    sizes = [micro or work.micro]
    if work.auto and available and not micro:
        sizes = auto_micro_batch_sizes(work.share, work.model.block_size)
    totals = [compute_memory(work, sequences) for sequences in sizes]
    return max((total for total in totals if available and total <= USABLE_SHARE * available), default=totals[0])


def compute_memory(work: PointWorkload, sequences: int) -> int:
    gpu = work.device != "cpu"
    memory = estimate_training_memory(
        work.model, work.precision, sequences, gpu, work.rule, work.recompute, work.shards
    )
    return memory.total if work.device == "cuda" else memory.host_bytes(work.ranks_per_node)


def suggest_fix(points: list[RemainingWork], available: int) -> str:
    """Return what makes all points fit: the largest micro-batch that does, else another GPU."""
    works = {point.work for point in points}
    for micro in sorted(divisors(gcd(*(work.share for work in works))), reverse=True):
        if all(peak_memory(work, available, micro) <= USABLE_SHARE * available for work in works):
            return f"try hardware.micro_batch_size={micro}"
    largest = max(peak_memory(work, available, 1) for work in works)
    gpus = [(device.memory, name) for name, device in GPU_SPECS.items() if largest <= USABLE_SHARE * device.memory]
    if not points[0].work.gpu or not gpus:
        return "even micro-batches of one sequence are too large"
    memory, other = min(gpus)
    return f"not even hardware.micro_batch_size=1 fits; {other}, {format_bytes(memory)}, would do"


def describe_crowding(needs: list[int], most: float, at_once: int | None) -> str:
    """Return what to do if points fit alone but not in parallel, else an empty string."""
    largest = sorted(needs, reverse=True)[:at_once]
    if at_once is None or sum(largest) <= most:
        return ""
    fitting = max(n for n in range(1, len(largest) + 1) if sum(largest[:n]) <= most)
    return (
        f" alone, but {len(largest)} at once need up to {format_bytes(sum(largest))}: try "
        f"hydra.launcher.array_parallelism={fitting}"
    )


def memory_unit(points: list[RemainingWork]) -> str:
    """Return ` per GPU` or ` per machine` if a point uses several."""
    if points[0].work.device == "cuda":
        return " per GPU" if any(point.work.ranks > 1 for point in points) else ""
    return " per machine" if any(point.work.ranks > point.work.ranks_per_node for point in points) else ""


def format_bytes(number: float) -> str:
    return f"{format_count(number, 'G')}B"


def format_range(values: Sequence[Value], write: Callable[[Value], str]) -> str:
    """Return e.g. `1h05m`, or `1h05m to 2h10m`."""
    low, high = write(min(values)), write(max(values))  # type: ignore[type-var]
    return low if low == high else f"{low} to {high}"
