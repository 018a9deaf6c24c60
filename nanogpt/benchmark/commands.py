"""What a person waits for: whole commands, from the start of Python."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nanogpt.benchmark.timing import Rows, format_spread, time_call
from nanogpt.config import BenchConfig
from nanogpt.console import format_count
from nanogpt.metrics_file import Row, read_rows

TRAIN = (sys.executable, str(Path(__file__).parents[2] / "train.py"))
NOT_TRAIN_PY = ("training.tokens", "bench.", "against=", "profile=")  # words of this command that train.py doesn't take


def measure_startup() -> Rows:
    """Whole-process time of what a person waits for, from the start of Python."""
    rows: Rows = []
    for words in (["--help"], ["--cfg", "job"]):
        command = [*TRAIN, *words]
        runs = [time_call(lambda c=command: subprocess.run(c, stdout=subprocess.DEVNULL, check=True)) for _ in range(5)]
        rows.append((f"`python train.py {' '.join(words)}`", format_spread(runs)))
    rows.append(
        (
            "`python train.py` to the end of its first step, data prepared",
            format_spread([time_first_step() for _ in range(3)]),
        )
    )
    return rows


def measure_ranks(config: BenchConfig) -> Rows:
    """Whole trainings of this command on several numbers of ranks: tokens a second after the first steps."""
    rows: Rows = []
    for count in config.bench.ranks:
        found = train_briefly(config.bench.warmup + config.bench.steps, count)
        rates = [row["tokens_per_second"] for row in found[config.bench.warmup :]]
        rows.append((f"training on {count} ranks", f"{format_count(statistics.median(rates))} tokens a second"))
    return rows


def time_first_step() -> float:
    """Seconds from starting train.py with this command's overrides to its first row in timing.jsonl."""
    started = time.time()
    return train_briefly(1, None)[0]["time"] - started


def train_briefly(steps: int, ranks: int | None) -> list[Row]:
    """timing.jsonl of a training with this command's overrides."""
    with tempfile.TemporaryDirectory() as folder:
        short = {"training.steps": steps, "schedule.warmup_steps": 0, "eval.tokens": 1, "tracking.log_every": 1}
        short |= {"tracking.sample_tokens": 0, "runs_dir": folder, "eval.every": 10**6, "checkpoint.every": 10**6}
        short |= {} if ranks is None else {"hardware.devices": ranks}
        replaced = (*short, *NOT_TRAIN_PY)
        ours = [word for word in sys.argv[1:] if not word.startswith(replaced)]
        command = [*TRAIN, *ours, *(f"{key}={value}" for key, value in short.items())]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        (timing,) = Path(folder).glob("*/timing.jsonl")
        return read_rows(timing)
