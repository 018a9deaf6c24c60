"""Predict the memory of a sweep's points, and whether they fit, before they start."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import gcd
from typing import TypeVar

from launch.speeds import PointWorkload, RemainingWork
from nanogpt.config import auto_micro_batch_sizes, divisors
from nanogpt.errors import one_line
from nanogpt.estimates.gpu_specs import GPU_SPECS
from nanogpt.estimates.memory import USABLE_SHARE, estimate_training_memory
from nanogpt.formatting import format_count

Value = TypeVar("Value")


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
