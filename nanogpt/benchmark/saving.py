"""Cost of checkpoints: how long training waits, the whole save against a bare write, verifying and restoring."""

import os
import tempfile
import time
from pathlib import Path

from nanogpt.benchmark.timing import Rows, format_spread, time_call
from nanogpt.checkpoint import load_verified
from nanogpt.config import BenchConfig
from nanogpt.console import print_text
from nanogpt.data.batches import TrainBatches
from nanogpt.formatting import format_count
from nanogpt.run_directory import RunDirectory
from nanogpt.safetensors_writer import tensor_blocks, write_all
from nanogpt.training.async_checkpoint import AsyncCheckpointer
from nanogpt.training.state import TrainState
from nanogpt.training.step import train_step

ROUNDS = 3  # of each measurement; bare writes and saves alternate, so that noise affects both
SAVE_EVERY = 10  # steps, in the comparison of a training with and without saves


def measure_saving(config: BenchConfig, state: TrainState, batches: TrainBatches) -> Rows:
    """Measure checkpoints of this state, written below `runs_dir`, the disk that a run would use."""
    folder = Path(config.runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=folder) as name:
        run = RunDirectory(Path(name))
        saver = AsyncCheckpointer(run, 3, print_text)
        saver.reserve_buffers(state)
        size = sum(tensor.nbytes for part in state.tensors().values() for tensor in part.values())
        stalls: list[float] = []
        saves: list[float] = []
        bare: list[float] = []
        for _ in range(ROUNDS):
            bare.append(time_call(lambda: write_bare(state, Path(name) / "bare")))
            state.step += 1
            started = time.perf_counter()
            stalls.append(time_call(lambda: saver.save(state)))
            wait_for_save(saver)
            saves.append(time.perf_counter() - started)
        path = run.checkpoints.path(state.step)
        loads = [time_call(lambda: load_verified(path)) for _ in range(ROUNDS)]
        loaded = load_verified(path)
        restores = [time_call(lambda: state.restore(loaded)) for _ in range(ROUNDS)]
        without = [time_call(lambda: train_intervals(config, state, batches, None)) for _ in range(ROUNDS)]
        with_saves = [time_call(lambda: train_intervals(config, state, batches, saver)) for _ in range(ROUNDS)]
        saver.raise_error()
        saver.close()
    rate, slower = SAVE_EVERY * 2 / min(without), min(with_saves) / min(without)
    return [
        (f"state of a checkpoint, {format_count(size, 'G')}B: bare write and fsync", format_spread(bare)),
        (f"whole save ({min(saves) / min(bare):.2f} x the bare write)", format_spread(saves)),
        ("of which the training waits", format_spread(stalls)),
        ("verifying and reading it", format_spread(loads)),
        ("restoring the state from it", format_spread(restores)),
        (f"steps a second without saves, and with one every {SAVE_EVERY}", f"{rate:.3g}, {rate / slower:.3g}"),
    ]


def write_bare(state: TrainState, path: Path) -> None:
    """Write the same bytes and fsync, without hashes or a manifest."""
    with path.open("wb", buffering=0) as file:
        for part in state.tensors().values():
            for block in tensor_blocks({name: tensor.cpu() for name, tensor in part.items()}):
                write_all(file, block)
        os.fsync(file.fileno())
    path.unlink()


def train_intervals(
    config: BenchConfig, state: TrainState, batches: TrainBatches, saver: AsyncCheckpointer | None
) -> None:
    """Train two intervals. With `saver`, save in each, and wait for the last save."""
    for number in range(1, 2 * SAVE_EVERY + 1):
        train_step(state, batches.micro_batches(state.samples), config)
        if saver and number % SAVE_EVERY == 0:
            wait_for_save(saver)
            saver.save(state)
    if saver:
        wait_for_save(saver)


def wait_for_save(saver: AsyncCheckpointer) -> None:
    while saver.is_busy():
        time.sleep(0.001)
