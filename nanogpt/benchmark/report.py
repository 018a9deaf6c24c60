"""`python bench.py`: run the benchmarks in `bench.what` and print Markdown tables."""

import os
import platform
import time
from pathlib import Path

import torch

from nanogpt.benchmark.commands import measure_ranks, measure_startup
from nanogpt.benchmark.comparison import check_baselines, compare_generation, compare_training, with_known_vocabulary
from nanogpt.benchmark.kernels import profile
from nanogpt.benchmark.models_at_once import compare_ways
from nanogpt.benchmark.timing import MarkdownTable, Rows
from nanogpt.benchmark.training import measure_training
from nanogpt.config import BenchConfig
from nanogpt.console import print_text
from nanogpt.device import Compute, set_up_device
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.output_paths import check_output_file, check_output_folder
from nanogpt.provenance import git_state
from nanogpt.training.auto_batch_size import resolve_micro_batch_size
from nanogpt.training.validation import check_state_fits


def bench(config: BenchConfig) -> int:
    """Print the tables and append them to `bench.out`. Raises BadInput, BadData, BadEnvironment."""
    check_baselines(config)
    check_output_file("bench.out", config.bench.out)
    if config.profile:
        check_output_folder("bench.trace" if config.bench.trace else "runs_dir", config.bench.trace or config.runs_dir)
    compute = set_up_device(config.hardware)
    check_state_fits(config, compute, 1)
    if "training" in config.bench.what and not config.against:
        config = with_fitting_micro_batch(config, compute)
    parts = [f"### {config.run_name}, {time.strftime('%Y-%m-%d')}", describe_machine(compute)]
    if "training" in config.bench.what:
        if config.against:
            table = compare_training(config, compute)
        else:
            table = MarkdownTable(("what", "measured"), build_training_rows(config, compute))
        parts.append(table.markdown())
    if "generation" in config.bench.what:
        parts += [table.markdown() for table in compare_generation(config, compute)]
    if "models" in config.bench.what:
        parts.append(compare_ways(config, compute).markdown())
    text = "\n\n".join(parts)
    print_text(text)
    if config.bench.out is not None:
        Path(config.bench.out).parent.mkdir(parents=True, exist_ok=True)
        with open(config.bench.out, "a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")
    if config.profile:
        profile(config, compute)
    return 0


def with_fitting_micro_batch(config: BenchConfig, compute: Compute) -> BenchConfig:
    """Replace `auto` by the micro-batch size that train.py would choose. Raises BadData, BadEnvironment."""
    if config.hardware.micro_batch_size != "auto":
        return config
    found = resolve_micro_batch_size(
        config, with_known_vocabulary(config).model, compute, ProcessGroup(), 1
    ).micro_batch_size()
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(compute.device)  # forget the peak of the trial steps
    return config.with_micro_batch_size(found)


def build_training_rows(config: BenchConfig, compute: Compute) -> Rows:
    """Measure training without a comparison."""
    return [
        *measure_training(config, compute),
        *measure_ranks(config),
        *(measure_startup() if config.bench.startup else []),
    ]


def describe_machine(compute: Compute) -> str:
    """Return a line with processor, precision, versions and commit."""
    git = git_state(Path(__file__).parent)
    commit = git["commit"][:10] + ("+" if git["changed"] else "") if git else "none"
    threads = f", {torch.get_num_threads()} threads" if compute.device.type == "cpu" else ""
    return (
        f"{compute.name} ({os.cpu_count()} cores){threads}, {compute.precision}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, commit {commit}"
    )
