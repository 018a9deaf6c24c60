"""`python -m nanogpt.benchmark.worker`: the process of one measurement. Work as JSON comes in, a Measurement goes out.

Every program gets the same device, threads, precision, shapes, token ids and warm-up.
"""

import sys
from contextlib import redirect_stdout

from torch import nn

from nanogpt.benchmark import baselines
from nanogpt.benchmark.measurement import OURS, Measurement, Work
from nanogpt.benchmark.ours import Batches, generator, random_batches, random_prompts, trainer
from nanogpt.benchmark.timing import Stopwatch, peak_resident, synchronizer, timed
from nanogpt.device import Compute, set_up
from nanogpt.errors import LabError
from nanogpt.training.step import Phase, unobserved

WARM_UP_TOKENS = 4  # drawn before the clock starts
MOST_PHASED = 3  # steps of their own that are measured by phase


def main() -> int:
    """Measure; what programs print goes to standard error, and an error is its last line."""
    work = Work.model_validate_json(sys.stdin.read())
    try:
        with redirect_stdout(sys.stderr):
            compute = set_up(work.config.hardware)
            found = {"training": training, "generation": generation}[work.what](work, compute)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(found.model_dump_json())
    return 0


def training(work: Work, compute: Compute) -> Measurement:
    """Steps on the same random batch; the first, which may compile, is told apart from the warm-up. Then a few more,
    whose phases are waited for.
    """
    batches: Batches = random_batches(work, compute.device)
    make = trainer if work.program == OURS else baselines.nanogpt_trainer
    model, step = make(work, compute, batches)
    synchronize = synchronizer(compute.device)

    def whole_step(phase: Phase = unobserved) -> None:
        step(phase)
        synchronize()

    first = timed(whole_step)
    for _ in range(work.config.bench.warmup):
        whole_step()
    found = measurement([timed(whole_step) for _ in range(work.config.bench.steps)], first, model, compute)
    watch, count = Stopwatch(synchronize), min(MOST_PHASED, work.config.bench.steps)
    for _ in range(count):
        whole_step(watch.phase)
    return found.model_copy(update={"phases": {name: total / count for name, total in watch.seconds.items()}})


def generation(work: Work, compute: Compute) -> Measurement:
    """All new tokens of a batch of texts, once; the model is ready before the clock starts."""
    prompts = random_prompts(work, compute.device)
    make = generator if work.program == OURS else baselines.generator_of(work.program)
    model, draw = make(work, compute, prompts)
    synchronize = synchronizer(compute.device)

    def drawn(count: int) -> None:
        draw(count)
        synchronize()

    drawn(WARM_UP_TOKENS)
    first = timed(lambda: drawn(1))
    return measurement([timed(lambda: drawn(work.config.bench.new_tokens))], first, model, compute)


def measurement(seconds: list[float], first: float, model: nn.Module, compute: Compute) -> Measurement:
    """With the memory that it took."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    memory = compute.peak_memory() or peak_resident()
    return Measurement(seconds=tuple(seconds), first=first, memory=memory, parameters=parameters)


if __name__ == "__main__":
    sys.exit(main())
