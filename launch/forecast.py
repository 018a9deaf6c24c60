"""How long the points of a sweep will take and whether they fit into memory: what its preview says before it starts.

Estimates, from the shapes of the models and a speed that was measured or is said to be assumed. The time is that of the
training steps alone, as in nanogpt/estimates/plan.py. Without torch, and fast for a thousand points.
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
from launch.speeds import DeviceKind, Speed, Work, measured, speed_of, unlabelled
from launch.study import Member
from nanogpt.config import DataConfig, Gpu, HardwareConfig, Precision, TrainConfig, auto_micro_batch_sizes, divisors
from nanogpt.console import format_count, format_duration
from nanogpt.data.dataset import expected_vocab_size
from nanogpt.errors import LabError, one_line
from nanogpt.estimates.flops import compute_total_steps
from nanogpt.estimates.gpu_specs import GPU_SPECS
from nanogpt.estimates.memory import USABLE_SHARE, estimate_training_memory
from nanogpt.estimates.plan import MFU
from nanogpt.run_directory import newest_step

Value = TypeVar("Value")


@dataclass(frozen=True)
class Left:
    """What is left to do of one point."""

    run: Path
    work: Work
    tokens: int


def estimate(
    members: Sequence[Member], gpu: Gpu | None, at_once: int | None, runs_dir: Path | None = None, here: bool = True
) -> list[str]:
    """Lines for a person about what is left of `members`, of which `at_once` run at the same time, None: nobody knows.

    `gpu` is the kind that points with hardware.device=auto or cuda get, None when it isn't known. Speeds are looked up
    in the folder that the points are in, then in `runs_dir`. Points on CPUs share this machine's memory, unless they
    are not run `here`. Raises nothing: what can't be told is said to be so.
    """
    if not members:
        return []
    sizes = Vocabularies()
    try:
        points = points_left(members, gpu, sizes, here and bool(visible_gpus()))
    except (LabError, OSError) as error:  # the data's files
        return [f"note    neither time nor memory can be told: {one_line(error, 200)}"]
    folders = [members[0].run.parent, *([runs_dir] if runs_dir else [])]
    runs = measured(folders, lambda data: sizes.of(data)[0])
    speeds = {work: speed_of(work, runs) for work in {point.work for point in points}}
    lines = [*time_lines(points, speeds, at_once), *memory_lines(points, at_once, here)]
    taken = {sizes.of(member.config.data) for member in members if member.config.model.vocab_size is None}
    guesses = [f"{number:,}" for number, sure in sorted(taken) if not sure]
    return lines + [f"note    a vocabulary of {one} is assumed until the data is prepared" for one in guesses]


class Vocabularies:
    """How many ids each data set has or will have, and whether that is sure; looked up once."""

    def __init__(self) -> None:
        self.known: dict[object, tuple[int, bool]] = {}

    def of(self, data: DataConfig) -> tuple[int, bool]:
        """Raises BadData, OSError."""
        if data not in self.known:
            self.known[data] = expected_vocab_size(data)
        return self.known[data]


def points_left(members: Sequence[Member], gpu: Gpu | None, sizes: Vocabularies, gpus_here: bool) -> list[Left]:
    """Each point's work and the tokens that it still has to train on. Raises BadData, OSError."""
    works: dict[tuple[object, ...], Work] = {}
    points: list[Left] = []
    for run, config in ((member.run, member.config) for member in members):
        key = (config.model, config.data, config.hardware, config.training.batch_tokens, config.optimizer.name)
        if key not in works:
            works[key] = work_of(config, sizes.of(config.data)[0], gpu, gpus_here)
        work = works[key]
        steps = config.last_step(compute_total_steps(config, work.model)) - (
            0 if config.new_attempt else newest_step(run)
        )
        points.append(Left(run, work, max(0, steps) * config.training.batch_tokens))
    return points


def work_of(config: TrainConfig, vocab_size: int, gpu: Gpu | None, gpus_here: bool) -> Work:
    """What `config` gives each rank to do."""
    hardware = config.hardware
    ranks_per_node = hardware.devices or 1
    ranks = (hardware.nodes or 1) * ranks_per_node
    device = device_of(hardware, gpu, gpus_here)
    gpu = gpu if device == "cuda" else None
    return Work(
        model=unlabelled(config.model, vocab_size),
        rule=config.optimizer.name,
        device=device,
        gpu=gpu,
        precision=precision_of(hardware, device, gpu),
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


def device_of(hardware: HardwareConfig, gpu: Gpu | None, gpus_here: bool) -> DeviceKind:
    if hardware.device.startswith("cuda") or (hardware.device == "auto" and (gpu or gpus_here)):
        return "cuda"
    return "mps" if hardware.device == "mps" else "cpu"


def precision_of(hardware: HardwareConfig, device: DeviceKind, gpu: Gpu | None) -> Precision:
    """What hardware.precision=auto will be there."""
    if hardware.precision != "auto":
        return hardware.precision
    return "fp32" if device != "cuda" else GPU_SPECS[gpu].precision if gpu else "bf16"


def time_lines(points: list[Left], speeds: dict[Work, Speed | None], at_once: int | None) -> Iterator[str]:
    """Of one point, and of all whose speed is known; how many those are of which it isn't, and how to find out."""
    known = [(point, speed) for point in points if (speed := speeds[point.work])]
    if known:
        durations = [point.tokens / speed.rate for point, speed in known]
        whole = f"about {span(durations, format_duration)} of training"
        if len(points) > 1:
            which = f"the {len(points)}" if len(known) == len(points) else f"{len(known)} of the {len(points)}"
            whole += f" for one point, {together(durations, at_once, which)}"
        yield f"time    {whole} ({sources([speed for _, speed in known])})"
    if unknown := len(points) - len(known):
        which = f" of {unknown} of {len(points)} points" if known else ""
        yield (
            f"time    not known{which}: no earlier run is like it; python train.py dry_run=true says, with the "
            f"settings of a point and where it will run"
        )


def together(durations: list[float], at_once: int | None, which: str) -> str:
    """The time for all of them."""
    if at_once is None:
        return f"{format_duration(sum(durations))} for {which} that are left if they ran one after the other"
    way = "one after the other" if at_once == 1 else f"{min(at_once, len(durations))} at once"
    return f"{format_duration(makespan(durations, at_once))} for {which} that are left, {way}"


def makespan(durations: list[float], at_once: int) -> float:
    """When the last is done, if the next starts whenever one ends."""
    ends = [0.0] * min(at_once, len(durations))
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def sources(speeds: list[Speed]) -> str:
    """`from 41k tok/s, measured in runs/x`; of several kinds with the number of points of each."""
    parts: list[str] = []
    kinds = Counter(speed.how for speed in speeds)
    for how, count in kinds.items():
        of = list(dict.fromkeys(speed for speed in speeds if speed.how == how))
        where = list(dict.fromkeys(one_line(speed.where, 400) for speed in of))
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        said = {
            "measured": f"measured in {where[0]}{more}",
            "scaled": f"scaled by FLOPs a token from another model's, measured in {where[0]}{more}",
            "assumed": f"{MFU:.0%} of {where[0]}'s peak, assumed, which small models don't get to",
        }[how]
        number = f"{count} " if len(kinds) > 1 else ""
        parts.append(f"{number}from {span([speed.rate for speed in of], format_count)} tok/s, {said}")
    return "; ".join(parts)


def memory_lines(points: list[Left], at_once: int | None, here: bool) -> Iterator[str]:
    """A line for each kind of device."""
    for device in sorted({point.work.device for point in points}):
        of = [point for point in points if point.work.device == device]
        there, words = memory_of(of[0].work, here)
        if there is None:
            yield f"memory  about {span([needed(one.work) for one in of], size)}{per(of)}; {words}"
        elif bad := [point for point in of if needed(point.work, there) > USABLE_SHARE * there]:
            worst = max(bad, key=lambda point: needed(point.work, there))
            subject = f"{len(bad)} of {len(of)} points need" if len(of) > 1 else "the point needs"
            needs = span([needed(point.work, there) for point in bad], size)
            yield (
                f"memory  {subject} about {needs}{per(of)}, more than {USABLE_SHARE:.0%} of the {size(there)} {words}: "
                f"{remedy(of, there)} (largest: {one_line(worst.run.name)})"
            )
        else:
            needs = [needed(one.work, there) for one in of]
            crowd = crowded(needs, there, at_once) if device != "cuda" else ""
            yield f"memory  about {span(needs, size)}{per(of)} of the {size(there)} {words}; fits{crowd}"


def memory_of(work: Work, here: bool) -> tuple[int | None, str]:
    """Bytes of a GPU, or of this machine where that is what trains, and whose they are; or None and why."""
    if work.gpu:
        return GPU_SPECS[work.gpu].memory, f"of {work.gpu}"
    if work.device == "cuda":
        return None, "which kind of GPU that is isn't known, nor whether it fits"
    if not here:
        return None, "what the machines have isn't known"
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "of this machine"
    except (OSError, ValueError):
        return None, "what this machine has can't be told"


def memory(work: Work, sequences: int) -> int:
    """Return the bytes of a GPU, or of a machine whose ranks share its memory, with micro-batches of `sequences`."""
    gpu = work.device != "cpu"
    one = estimate_training_memory(work.model, work.precision, sequences, gpu, work.rule, work.recompute, work.shards)
    if work.device == "cuda":
        return one.total
    return one.host_bytes(work.ranks_per_node)


@cache
def needed(work: Work, there: int | None = None, micro: int | None = None) -> int:
    """Return the bytes of a GPU, or of a machine whose ranks share its memory. A micro-batch that will be found by
    trying is the largest that fits, or 1.
    """
    sizes = [micro or work.micro]
    if work.auto and there and not micro:
        sizes = auto_micro_batch_sizes(work.share, work.model.block_size)
    totals = [memory(work, n) for n in sizes]
    fitting = [total for total in totals if there and total <= USABLE_SHARE * there]
    return max(fitting, default=totals[0])


def remedy(points: list[Left], there: int) -> str:
    """What makes all points fit: the largest micro-batch with which they do, else another GPU."""
    works = {point.work for point in points}
    for micro in sorted(divisors(gcd(*(work.share for work in works))), reverse=True):
        if all(needed(work, there, micro) <= USABLE_SHARE * there for work in works):
            return f"try hardware.micro_batch_size={micro}"
    largest = max(needed(work, there, 1) for work in works)
    gpus = [(device.memory, name) for name, device in GPU_SPECS.items() if largest <= USABLE_SHARE * device.memory]
    if not points[0].work.gpu or not gpus:
        return "even micro-batches of one sequence are too large"
    memory, other = min(gpus)
    return f"not even hardware.micro_batch_size=1 fits; {other}, {size(memory)}, would do"


def crowded(needs: list[int], there: int, at_once: int | None) -> str:
    """What to do when points fit alone but not beside each other."""
    largest = sorted(needs, reverse=True)[:at_once]
    if at_once is None or sum(largest) <= USABLE_SHARE * there:
        return ""
    fitting = max(n for n in range(1, len(largest) + 1) if sum(largest[:n]) <= USABLE_SHARE * there)
    return (
        f" alone, but {len(largest)} at once need up to {size(sum(largest))}: try "
        f"hydra.launcher.array_parallelism={fitting}"
    )


def per(points: list[Left]) -> str:
    """Whose memory it is of several."""
    if points[0].work.device == "cuda":
        return " a GPU" if any(point.work.ranks > 1 for point in points) else ""
    return " a machine" if any(point.work.ranks > point.work.ranks_per_node for point in points) else ""


def size(number: float) -> str:
    return f"{format_count(number, 'G')}B"


def span(values: Sequence[Value], shown: Callable[[Value], str]) -> str:
    """`1h05m`, or `1h05m to 2h10m`."""
    low, high = shown(min(values)), shown(max(values))  # type: ignore[type-var]
    return low if low == high else f"{low} to {high}"
