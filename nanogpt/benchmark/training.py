"""Training steps of a config on its own data: time, rate, MFU, phases, memory, and the time to load a batch."""

import statistics
from collections.abc import Iterator

from nanogpt.benchmark.measurement import with_vocabulary
from nanogpt.benchmark.roofline import compute_floors
from nanogpt.benchmark.saving import measure_saving
from nanogpt.benchmark.timing import Rows, Stopwatch, choose_synchronize, format_spread, peak_resident, time_call
from nanogpt.config import BenchConfig, ModelConfig
from nanogpt.data.batches import Batch, TrainBatches
from nanogpt.data.prepare import prepare_if_small
from nanogpt.device import Compute
from nanogpt.estimates.flops import flops_per_token
from nanogpt.estimates.gpu_specs import compute_mfu
from nanogpt.formatting import format_count
from nanogpt.training.state import TrainState, build_state
from nanogpt.training.step import train_step
from nanogpt.training.validation import fit_model_to_data

PHASES = ("data", "forward", "backward", "clip", "optimizer")
MOST_PHASED = 10  # steps that are measured by phase


def prepare_training(config: BenchConfig, compute: Compute) -> tuple[TrainState, TrainBatches]:
    """Return the state before the first step, and its data."""
    dataset = prepare_if_small(config.data)
    state = build_state(config, fit_model_to_data(config, dataset), compute)
    return state, TrainBatches(dataset.train, config, compute.device)


def measure_training(config: BenchConfig, compute: Compute) -> Rows:
    """Measure whole steps, then steps by phase, then loading, then checkpoints."""
    state, batches = prepare_training(config, compute)
    synchronize = choose_synchronize(compute.device)

    def step() -> None:
        train_step(state, batches.micro_batches(state.samples), config)
        synchronize()

    first = time_call(step)
    for _ in range(config.bench.warmup):
        step()
    steps = [time_call(step) for _ in range(config.bench.steps)]
    median = statistics.median(steps)
    gpu_memory = compute.peak_memory()
    memory = peak_resident()
    batch = f"{config.grad_accum()} x {config.micro_batch_size()} x {config.model.block_size}"
    floor = compute_floors(with_vocabulary(config, state.model.config.vocab_size), compute)
    compiling = [("compiling: the first step less a steady one", f"{first - median:.3g} s")]
    loads = [
        time_call(lambda i=i: batches.read_batch(state.samples + i * config.micro_batch_size())) for i in range(200)
    ]
    return [
        (f"step of {config.training.batch_tokens:,} tokens ({batch})", format_spread(steps)),
        ("tokens a second", format_count(config.training.batch_tokens / median)),
        ("achieved", describe_flops(config.training.batch_tokens / median, state.model.config, compute)),
        *((name, cell) for name, cell in floor.rows(median)),
        *measure_phases(config, state, batches),
        ("first step", f"{1e3 * first:.0f} ms"),
        *(compiling if compute.compiles else []),
        (f"loading a micro-batch of {config.micro_batch_size()} x {config.model.block_size}", format_spread(loads)),
        ("peak memory of the process", f"{format_count(memory, 'G')}B"),
        *([("peak memory of the GPU", f"{format_count(gpu_memory, 'G')}B")] if gpu_memory else []),
        *(measure_saving(config, state, batches) if config.bench.checkpoint else []),
    ]


def describe_flops(rate: float, model: ModelConfig, compute: Compute) -> str:
    """Format FLOP/s at a rate in tokens per second, with the MFU if the device's peak is known."""
    flops = rate * flops_per_token(model)
    mfu = compute_mfu(flops, compute.name, compute.precision)
    return f"{format_count(flops, 'G')}FLOP/s" + ("" if mfu is None else f", MFU {100 * mfu:.1f} %")


def measure_phases(config: BenchConfig, state: TrainState, batches: TrainBatches) -> Rows:
    """Measure the phases of steps, with the device synchronized after each phase."""
    synchronize = choose_synchronize(state.compute.device)
    watches: list[Stopwatch] = []
    steps: list[float] = []
    for _ in range(min(config.bench.steps, MOST_PHASED)):
        watch = Stopwatch(synchronize)
        watches.append(watch)
        data = time_batches(batches.micro_batches(state.samples), watch)
        steps.append(time_call(lambda d=data, w=watch: train_step(state, d, config, w.phase)))
    times = {name: [watch.seconds.get(name, 0.0) for watch in watches] for name in PHASES}
    times["rest"] = [step - sum(watch.seconds.values()) for step, watch in zip(steps, watches, strict=True)]
    return [
        (
            f"of a step, each phase waited for: {name}",
            f"{format_spread(found)}, {100 * sum(found) / sum(steps):.1f} %",
        )
        for name, found in times.items()
    ]


def time_batches(batches: Iterator[Batch], watch: Stopwatch) -> Iterator[Batch]:
    """Yield the batches, and add the time to read each to the phase `data`."""
    while True:
        with watch.phase("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
