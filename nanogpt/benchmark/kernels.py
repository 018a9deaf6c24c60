"""`profile=true`: a torch.profiler trace, for chrome://tracing or Perfetto, and a table of the costliest kernels."""

import time
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, record_function, schedule
from torch.profiler import profile as profiler

from nanogpt.benchmark.comparison import with_known_vocabulary
from nanogpt.benchmark.measurement import OURS, Workload
from nanogpt.benchmark.ours import build_generator, build_trainer, random_batches, random_prompts
from nanogpt.benchmark.timing import format_digits
from nanogpt.benchmark.training import prepare_training
from nanogpt.config import BenchConfig
from nanogpt.console import print_text
from nanogpt.device import Compute
from nanogpt.formatting import format_table
from nanogpt.training.step import train_step

SKIPPED, WARM_UP, ACTIVE = 2, 1, 3  # steps
GENERATED = 16  # tokens per step of generation
TOP = 15


def profile(config: BenchConfig, compute: Compute) -> None:
    """Profile each of `bench.what`: write a trace and print the costliest kernels."""
    if "training" in config.bench.what:
        profile_training(config, compute)
    if "generation" in config.bench.what:
        profile_generation(config, compute)


def profile_training(config: BenchConfig, compute: Compute) -> None:
    """Profile steps, with labelled phases, on the config's data; on random batches if programs are compared."""
    if config.against:
        config = with_known_vocabulary(config)
        workload = Workload(program=OURS, what="training", batch=config.micro_batch_size(), config=config)
        _, step = build_trainer(workload, compute, random_batches(workload, compute.device))
        profile_steps(config, compute, "training", lambda: step(record_function))
        return
    state, batches = prepare_training(config, compute)
    profile_steps(
        config,
        compute,
        "training",
        lambda: train_step(state, batches.micro_batches(state.samples), config, record_function),
    )


def profile_generation(config: BenchConfig, compute: Compute) -> None:
    """Profile a few tokens of each batch size."""
    config = with_known_vocabulary(config)
    for batch in config.bench.batch_sizes:
        workload = Workload(program=OURS, what="generation", batch=batch, config=config)
        _, draw = build_generator(workload, compute, random_prompts(workload, compute.device))
        profile_steps(config, compute, f"generation-{batch}", lambda d=draw: d(GENERATED))


def record_profile(compute: Compute, step: Callable[[], object]) -> profiler:
    """Run a step a few times and record the last ones."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if compute.device.type == "cuda" else [])]
    plan = schedule(wait=SKIPPED, warmup=WARM_UP, active=ACTIVE, repeat=1)
    with profiler(activities=activities, schedule=plan, acc_events=True) as found:
        for _ in range(SKIPPED + WARM_UP + ACTIVE):
            step()
            found.step()
    return found


def profile_steps(config: BenchConfig, compute: Compute, name: str, step: Callable[[], object]) -> None:
    """Record some steps, write their trace and print the costliest kernels."""
    gpu, found = compute.device.type == "cuda", record_profile(compute, step)
    folder = Path(config.bench.trace or config.runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"trace-{config.run_name}-{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    found.export_chrome_trace(str(path))
    title = f"{name}: top kernels by their own time, of {ACTIVE} steps on the {'GPU' if gpu else 'CPU'}"
    print_text(format_table(title, ("kernel", "share", "calls", "ms"), top_kernels(found, gpu)))
    print_text(f"trace of {ACTIVE} steps: {path}")


def top_kernels(found: profiler, gpu: bool) -> list[tuple[str, str, str, str]]:
    """Return (name, share of the time, calls, ms) of the costliest kernels. Labels of phases are not kernels."""
    rows: list[tuple[float, int, str]] = []
    for event in found.key_averages():
        spent = event.self_device_time_total if gpu else event.self_cpu_time_total
        kernel = event.device_type.name == ("CUDA" if gpu else "CPU")
        if spent > 0 and kernel and not event.is_user_annotation and not event.key.startswith("ProfilerStep"):
            rows.append((spent, event.count, event.key))
    whole = sum(spent for spent, _, _ in rows)
    rows = sorted(rows, reverse=True)[:TOP]
    return [(key[:70], f"{100 * us / whole:.1f} %", f"{count:,}", format_digits(us / 1e3)) for us, count, key in rows]
