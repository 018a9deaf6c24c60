"""`python bench.py`: milliseconds per step, tokens a second, MFU, memory, batch loading and start-up, measured here."""

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nanogpt.config import BenchConfig
from nanogpt.data.batches import TrainBatches
from nanogpt.data.prepare import ensure
from nanogpt.device import Compute, set_up
from nanogpt.model.cost import flops_per_token
from nanogpt.model.devices import peak_flops
from nanogpt.provenance import git_state
from nanogpt.saving_benchmark import Rows, saving_rows
from nanogpt.tracking.console import amount, say
from nanogpt.tracking.metrics import Row, read_rows
from nanogpt.training.run import model_for, refuse_too_large
from nanogpt.training.state import build_state
from nanogpt.training.step import train_step


def bench(config: BenchConfig) -> int:
    """Measure the step of this config on its real data, and print (and append to `bench.out`) a Markdown table."""
    compute = set_up(config.hardware)
    refuse_too_large(config, compute)
    rows = [*step_rows(config, compute), *rank_rows(config), *(startup_rows() if config.bench.startup else [])]
    lines = [
        f"### {config.run_name}, {time.strftime('%Y-%m-%d')}",
        "",
        machine(compute),
        "",
        "| what | measured |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    text = "\n".join(lines)
    say(text)
    if config.bench.out:
        with open(config.bench.out, "a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")
    return 0


def machine(compute: Compute) -> str:
    """Processor, precision, versions and commit, in one line."""
    git = git_state(Path(__file__).parent)
    commit = git["commit"][:10] + ("+" if git["changed"] else "") if git else "none"
    threads = f", {torch.get_num_threads()} threads" if compute.device.type == "cpu" else ""
    return (
        f"{compute.name} ({os.cpu_count()} cores){threads}, {compute.precision}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, commit {commit}"
    )


def step_rows(config: BenchConfig, compute: Compute) -> Rows:
    """Training steps on the config's data: time, rate, MFU, memory; and the time to load a micro-batch."""
    dataset = ensure(config.data)
    state = build_state(config, model_for(config, dataset), compute)
    batches = TrainBatches(dataset.train, config, compute.device)
    synchronize: Callable[[], None] = torch.cuda.synchronize if compute.device.type == "cuda" else lambda: None

    def step() -> None:
        train_step(state, batches.step(state.samples), config)
        synchronize()

    first = timed(step)
    for _ in range(config.bench.warmup):
        step()
    steps = [timed(step) for _ in range(config.bench.steps)]
    loads = [timed(lambda i=i: batches.batch(state.samples + i * config.micro_batch_size())) for i in range(200)]
    median = statistics.median(steps)
    rate = config.training.batch_tokens / median
    flops = flops_per_token(state.model.config)
    peak = peak_flops(compute.name, compute.precision)
    mfu = f", MFU {100 * rate * flops / peak:.1f} %" if peak else ""
    gpu_memory = compute.peak_memory()
    batch = f"{config.grad_accum()} x {config.micro_batch_size()} x {config.model.block_size}"
    return [
        (f"step of {config.training.batch_tokens:,} tokens ({batch})", spread(steps)),
        ("tokens a second", amount(rate)),
        ("achieved", f"{amount(rate * flops, 'G')}FLOP/s{mfu}"),
        ("first step (compiling included)", f"{1e3 * first:.0f} ms"),
        (f"loading a micro-batch of {config.micro_batch_size()} x {config.model.block_size}", spread(loads)),
        ("peak memory of the process", f"{amount(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, 'G')}B"),
        *([("peak memory of the GPU", f"{amount(gpu_memory, 'G')}B")] if gpu_memory else []),
        *(saving_rows(config, state, batches, timed, spread) if config.bench.checkpoint else []),
    ]


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def spread(durations: list[float]) -> str:
    """`median ms (min to max, n)`."""
    low, median, high = (1e3 * value for value in (min(durations), statistics.median(durations), max(durations)))
    return f"{median:.3g} ms ({low:.3g} to {high:.3g}, n={len(durations)})"


def startup_rows() -> Rows:
    """Whole-process time of what a person waits for, from the start of Python."""
    door = str(Path(sys.argv[0]).resolve().with_name("train.py"))
    rows: Rows = []
    for words in (["--help"], ["--cfg", "job"]):
        command = [sys.executable, door, *words]
        runs = [timed(lambda c=command: subprocess.run(c, stdout=subprocess.DEVNULL, check=True)) for _ in range(5)]
        rows.append((f"`python train.py {' '.join(words)}`", spread(runs)))
    rows.append(
        ("`python train.py` to the end of its first step, data prepared", spread([first_step(door) for _ in range(3)]))
    )
    return rows


def rank_rows(config: BenchConfig) -> Rows:
    """Whole trainings of this command on several numbers of ranks: tokens a second after the first steps."""
    door = str(Path(sys.argv[0]).resolve().with_name("train.py"))
    rows: Rows = []
    for count in config.bench.ranks:
        found = train_briefly(door, config.bench.warmup + config.bench.steps, count)
        rates = [row["tokens_per_second"] for row in found[config.bench.warmup :]]
        rows.append((f"training on {count} ranks", f"{amount(statistics.median(rates))} tokens a second"))
    return rows


def first_step(door: str) -> float:
    """Seconds from starting train.py with this command's overrides to its first row in timing.jsonl."""
    started = time.time()
    return train_briefly(door, 1, None)[0]["time"] - started


def train_briefly(door: str, steps: int, ranks: int | None) -> list[Row]:
    """timing.jsonl of a training with this command's overrides."""
    with tempfile.TemporaryDirectory() as folder:
        short = {"training.steps": steps, "schedule.warmup_steps": 0, "eval.tokens": 1, "tracking.log_every": 1}
        short |= {"tracking.sample_tokens": 0, "runs_dir": folder, "eval.every": 10**6, "checkpoint.every": 10**6}
        short |= {} if ranks is None else {"hardware.devices": ranks}
        replaced = (*short, "training.tokens", "bench.")
        ours = [word for word in sys.argv[1:] if not word.startswith(replaced)]
        command = [sys.executable, door, *ours, *(f"{key}={value}" for key, value in short.items())]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        (timing,) = Path(folder).glob("*/timing.jsonl")
        return read_rows(timing)
