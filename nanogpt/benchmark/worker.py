"""`python -m nanogpt.benchmark.worker`: the process of one measurement. Reads a Workload as JSON, prints a Timing.

All programs get the same device, threads, precision, shapes, token ids and warm-up.
"""

import sys

from torch import nn

from nanogpt.benchmark import baselines
from nanogpt.benchmark.measurement import OURS, Timing, Workload
from nanogpt.benchmark.ours import (
    Batches,
    build_generator,
    build_network_trainer,
    build_trainer,
    random_batches,
    random_prompts,
)
from nanogpt.benchmark.timing import Stopwatch, choose_synchronize, peak_resident, time_call
from nanogpt.child_process import answer
from nanogpt.device import Compute, set_up_device
from nanogpt.training.step import Phase, no_phase_timer

WARM_UP_TOKENS = 4  # generated before the measurement
MOST_PHASED = 3  # steps that are measured by phase


def run_workload(message: str) -> str:
    """Return the Timing of a Workload, both as JSON."""
    workload = Workload.model_validate_json(message)
    measure = measure_generation if workload.what == "generation" else measure_training
    return measure(workload, set_up_device(workload.config.hardware)).model_dump_json()


def measure_training(workload: Workload, compute: Compute) -> Timing:
    """Time steps on one random batch, the first, which may compile, separately; then the phases of a few more."""
    batches: Batches = random_batches(workload, compute.device)
    builders = {OURS: build_trainer if workload.models == 1 else build_network_trainer}
    make = builders.get(workload.program, baselines.build_nanogpt_trainer)
    model, step = make(workload, compute, batches)
    synchronize = choose_synchronize(compute.device)

    def whole_step(phase: Phase = no_phase_timer) -> None:
        step(phase)
        synchronize()

    first = time_call(whole_step)
    for _ in range(workload.config.bench.warmup):
        whole_step()
    seconds: list[float] = []
    while len(seconds) < workload.config.bench.steps or sum(seconds) < workload.least_s:
        seconds.append(time_call(whole_step))
    found = build_timing(seconds, first, model, compute)
    watch, count = Stopwatch(synchronize), min(MOST_PHASED, workload.config.bench.steps)
    for _ in range(count):
        whole_step(watch.phase)
    return found.model_copy(update={"phases": {name: total / count for name, total in watch.seconds.items()}})


def measure_generation(workload: Workload, compute: Compute) -> Timing:
    """Time the generation of all tokens of a batch once, after a warm-up."""
    prompts = random_prompts(workload, compute.device)
    builders = {"transformers": baselines.build_transformers_generator, OURS: build_generator}
    make = builders.get(workload.program, baselines.build_nanogpt_generator)
    model, draw = make(workload, compute, prompts)
    synchronize = choose_synchronize(compute.device)

    def draw_and_wait(count: int) -> None:
        draw(count)
        synchronize()

    draw_and_wait(WARM_UP_TOKENS)
    first = time_call(lambda: draw_and_wait(1))
    return build_timing([time_call(lambda: draw_and_wait(workload.config.bench.new_tokens))], first, model, compute)


def build_timing(seconds: list[float], first: float, model: nn.Module, compute: Compute) -> Timing:
    """Return the Timing of a model, with the peak memory of this process."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    memory = compute.peak_memory() or peak_resident()
    return Timing(seconds=tuple(seconds), first=first, memory=memory, parameters=parameters)


if __name__ == "__main__":
    sys.exit(answer(run_workload))
