"""Ways to train several models: one after the other, as one network, or each in a process of its own."""

import statistics
import time
from dataclasses import dataclass

from typing_extensions import assert_never

from nanogpt.benchmark.comparison import with_known_vocabulary
from nanogpt.benchmark.measurement import OURS, Workload, measure, measure_at_once
from nanogpt.benchmark.timing import MarkdownTable, format_range
from nanogpt.config import BenchConfig
from nanogpt.config.bench import Way
from nanogpt.cpu_threads import share_cores
from nanogpt.device import Compute


@dataclass(frozen=True)
class WayTime:
    """Time that a way takes, divided among the models that are trained at once."""

    step_s: float
    """Seconds of a step."""
    start_s: float = 0.0
    """Seconds to start the process of a model."""

    def total(self, steps: int) -> float:
        """Return the seconds of a whole run."""
        return self.start_s + steps * self.step_s


def measure_way(config: BenchConfig, way: Way, count: int, least_s: float = 0.0) -> WayTime:
    """Measure the steps of a way, for `least_s` at least. Raises LabError.

    `count` is the number of models in the network, or of processes at once, each with `hardware.threads` or one thread.
    One model alone uses all threads that a run would.
    """
    single = Workload(program=OURS, what="training", batch=config.micro_batch_size(), config=config, least_s=least_s)
    match way:
        case "alone":
            return WayTime(statistics.median(measure(single).seconds))
        case "network":
            together = measure(single.model_copy(update={"what": "models", "models": count}))
            return WayTime(statistics.median(together.seconds) / count)
        case "processes":
            hardware = config.hardware.model_copy(update={"threads": config.hardware.threads or 1})
            own = single.model_copy(update={"config": config.model_copy(update={"hardware": hardware})})
            began = time.perf_counter()
            runs = measure_at_once(own, count)
            elapsed, steps = time.perf_counter() - began, [statistics.median(run.seconds) for run in runs]
            training = max(
                run.first + config.bench.warmup * step + sum(run.seconds) for run, step in zip(runs, steps, strict=True)
            )
            return WayTime(statistics.mean(steps) / count, max(0.0, elapsed - training) / count)
        case _:
            assert_never(way)


def compare_ways(config: BenchConfig, compute: Compute) -> MarkdownTable:
    """Measure all ways in turn, `bench.rounds` times."""
    config, models = with_known_vocabulary(config), config.bench.models
    counts: dict[Way, int] = {"alone": 1, "network": models}
    names = ["one after the other", f"{models} as one network"]
    if (
        compute.device.type == "cpu"
        and (processes := min(models, share_cores(1) // (config.hardware.threads or 1))) > 1
    ):
        counts["processes"] = processes
        names.append(f"{processes} processes at once")
    rounds = [
        {way: measure_way(config, way, count).step_s for way, count in counts.items()}
        for _ in range(config.bench.rounds)
    ]
    shape = f"{config.grad_accum()} x {config.micro_batch_size()} x {config.model.block_size}"
    rows = [
        ("ms per model and step", *(format_range([1e3 * found[way] for found in rounds]) for way in counts)),
        ("faster", *(format_range([found["alone"] / found[way] for found in rounds], " x") for way in counts)),
    ]
    return MarkdownTable((f"training {models} models, {shape} tokens", *names), rows)
