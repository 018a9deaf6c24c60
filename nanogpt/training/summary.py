"""What a person reads before the first step and after the last."""

import os
import shutil
import sys
from pathlib import Path

import torch

from nanogpt.config import TrainConfig
from nanogpt.data.dataset import Dataset
from nanogpt.model.cost import flops_per_token, parameter_counts
from nanogpt.run_directory import RunDirectory
from nanogpt.tracking.console import amount, say, table, visible
from nanogpt.training.state import TrainState


def introduce(config: TrainConfig, state: TrainState, dataset: Dataset, run: RunDirectory) -> None:
    """What is about to happen, in five lines."""
    counts = parameter_counts(state.model)
    parts = ", ".join(f"{name} {amount(count)}" for name, count in counts.items() if name != "total")
    flops = flops_per_token(state.model.config, counts["total"])
    tokens = state.steps * config.training.batch_tokens
    compute = state.compute
    where = f"continuing at step {state.step}" if state.step else "new"
    threads = f", {torch.get_num_threads()} threads" if compute.device.type == "cpu" else ""
    world = state.peers.world
    micro, count = config.micro_batch_size(world), config.grad_accum(world)
    ranks = f"{world} ranks, each " if world > 1 else ""
    say(f"run     {run.path} ({where})")
    say(f"data    {config.data.name}: {dataset.description}")
    say(f"model   {config.model.name}: {amount(counts['total'])} parameters ({parts}), {amount(flops, 'G')}FLOP/token")
    say(
        f"plan    {state.steps:,} steps of {config.training.batch_tokens:,} tokens = {amount(tokens)} tokens; "
        f"{ranks}{count} micro-batches of {micro} x {config.model.block_size}"
    )
    say(f"device  {compute.device} ({compute.name}), {compute.precision}{threads}")


def conclude(config: TrainConfig, state: TrainState, run: RunDirectory) -> None:
    """The result, a sample, and where everything is."""
    results = state.results
    best = f"{state.best[0]:.4f} at step {state.best[1]:,}" if state.best else ""
    rows = [
        ("train loss", f"{results['train_loss']:.4f} nats/token" if "train_loss" in results else "not evaluated"),
        ("val loss", f"{results['val_loss']:.4f} nats/token, {results['val_bpb']:.4f} bits/byte"),
        ("best val loss", best),
        ("tokens", f"{state.samples * config.model.block_size:,} in {state.step:,} steps"),
    ]
    say()
    say(table("result", ("", ""), rows))
    samples = sorted((run.path / "samples").glob("step-*.txt"))
    if samples:
        say(f"\nsample ({samples[-1]}):")
        text = samples[-1].read_text(encoding="utf-8")
        say("\n".join(f"  | {visible(line)}" for line in text.splitlines()))
    say(f"\nrun directory  {run.path}\nloss curve     {run.plot}\n\nnext:")
    python = interpreter()
    say(f"  {python} sample.py run={run.path} prompt='{'def ' if config.data.corpus == 'pystdlib' else 'The '}'")
    say(f"  {python} train.py experiment=shakespeare_char_cpu")
    say(f"  {python} train.py data=text data.source='notes/*.txt'")


def interpreter() -> str:
    """How a person starts this Python from this folder: `python` where its environment is active."""
    found = shutil.which("python")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "python"
    near = os.path.relpath(sys.executable)
    return sys.executable if near.startswith("..") else near
