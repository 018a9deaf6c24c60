"""Time of whole commands, from the start of Python."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nanogpt.benchmark.timing import Rows, format_spread, time_call
from nanogpt.child_process import module_command
from nanogpt.config import BenchConfig
from nanogpt.formatting import format_count
from nanogpt.metrics_file import Row, read_rows

BENCH_ONLY = ("training.tokens", "bench.", "against=", "profile=")  # overrides that are not passed to `train`


def measure_startup() -> Rows:
    """Time `--help`, printing the config, and a training up to its first step."""
    rows: Rows = []
    for words in (["--help"], ["--cfg", "job"]):
        command = module_command("cli", "train", *words)
        runs = [time_call(lambda c=command: subprocess.run(c, stdout=subprocess.DEVNULL, check=True)) for _ in range(5)]
        rows.append((f"`nanogpt train {' '.join(words)}`", format_spread(runs)))
    first_steps = [time_first_step() for _ in range(3)]
    return [*rows, ("`nanogpt train` to the end of its first step, data prepared", format_spread(first_steps))]


def measure_ranks(config: BenchConfig) -> Rows:
    """Train on each number of ranks in `bench.ranks`; tokens per second after the warm-up."""
    rows: Rows = []
    for count in config.bench.ranks:
        found = train_briefly(config.bench.warmup + config.bench.steps, count)
        rates = [row["tokens_per_second"] for row in found[config.bench.warmup :]]
        rows.append((f"training on {count} ranks", f"{format_count(statistics.median(rates))} tokens a second"))
    return rows


def time_first_step() -> float:
    """Return the seconds from the start of `train` to its first row in timing.jsonl."""
    started = time.time()
    return train_briefly(1, None)[0]["time"] - started


def train_briefly(steps: int, ranks: int | None) -> list[Row]:
    """Train with this command's overrides and return the rows of timing.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        short = {"training.steps": steps, "schedule.warmup_steps": 0, "eval.tokens": 1, "tracking.log_every": 1}
        short |= {"tracking.sample_tokens": 0, "runs_dir": folder, "eval.every": 10**6, "checkpoint.every": 10**6}
        short |= {} if ranks is None else {"hardware.devices": ranks}
        replaced = (*short, *BENCH_ONLY)
        ours = [word for word in sys.argv[1:] if not word.startswith(replaced)]
        command = module_command("cli", "train", *ours, *(f"{key}={value}" for key, value in short.items()))
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        (timing,) = Path(folder).glob("*/timing.jsonl")
        return read_rows(timing)
