"""The memory that torch's CUDA allocator hands out, against the estimate, at real sizes; and no step waits."""

import gc

import pytest
import torch
from torch import nn

from cli.sweep_request import read_configs
from nanogpt.config import OPTIMIZERS, TrainConfig
from nanogpt.data.batches import Batch
from nanogpt.device import Compute, set_up_device
from nanogpt.estimates.memory import USABLE_SHARE, estimate_memory, largest_micro_batch
from nanogpt.model.gpt import GPT
from nanogpt.training.state import TrainState, build_state
from nanogpt.training.step import train_step
from tests.null_gpu.counters import waits

pytestmark = pytest.mark.null_gpu
PRESETS = [
    "baby",
    "baby_modern",
    "gpt2",
    "gpt2_medium",
    "gpt2_large",
    "gpt2_xl",
    "gpt2_modern",
    "gpt2 model.dropout=0.1",
    "gpt2 hardware.activation_checkpointing=true",
    "gpt2 model.dropout=0.1 hardware.activation_checkpointing=true",
    "gpt2_modern optimizer=muon",
    "gpt2_medium optimizer=normuon",
]
MEMORY = {"24 GB": 23.6, "80 GB": 79.1, "141 GB": 139.8}  # in GiB, as torch shows an RTX 4090, an H100 and an H200
FILLED = (
    0.95 * USABLE_SHARE
)  # at USABLE_SHARE itself the allocator's gaps were too many once: gpt2 recomputed, 273 sequences, 24 GB
MOST_TOKENS = 2**19  # of a micro-batch: beyond it a small model's estimate is proportional


def start(words: str, sequences: int = 1, vocab_size: int = 50304) -> tuple[TrainConfig, Compute]:
    """Return the config of a step of two micro-batches: beside the second there are gradients."""
    fixed = ["hardware=gpu", "hardware.compile=false", "hardware.attention=flash", f"model.vocab_size={vocab_size}"]
    (config,) = read_configs("train", TrainConfig, [f"model={words.split()[0]}", *words.split()[1:], *fixed])
    batch = config.training.model_copy(update={"batch_tokens": 2 * sequences * config.model.block_size})
    hardware = config.hardware.model_copy(update={"micro_batch_size": sequences})
    config = config.model_copy(update={"training": batch, "hardware": hardware})
    return config, set_up_device(config.hardware)


def make_steps(state: TrainState, config: TrainConfig, count: int) -> None:
    model = config.model
    ids = torch.zeros(config.micro_batch_size(), model.block_size, dtype=torch.int64, device="cuda")
    keys = ids[:, 0].clone() if model.dropout else None
    for _ in range(count):
        train_step(state, 2 * [Batch(ids, ids, keys)], config)


@pytest.fixture
def weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build models on the device without numbers, so that the host's memory stays empty."""
    monkeypatch.setattr(GPT, "to_empty", lambda self, device: nn.Module.to_empty(self, device="cuda"))  # type: ignore[reportUnknownLambdaType]
    monkeypatch.setattr("nanogpt.model.gpt.initialize", lambda *_: None)  # type: ignore[reportUnknownLambdaType]


@pytest.mark.parametrize("words", PRESETS)
@pytest.mark.parametrize("size", MEMORY)
def test_the_estimate_is_what_is_allocated(
    words: str, size: str, weightless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NULL_GPU_MEMORY", str(MEMORY[size]))
    config, compute = start(words)

    def needed(sequences: int) -> int:
        return estimate_memory(config, config.model, compute.precision, sequences, gpu=True).total

    sizes = range(1, MOST_TOKENS // config.model.block_size + 1)
    sequences = largest_micro_batch(sizes, FILLED * MEMORY[size] * 2**30, needed)
    if sequences is None:
        pytest.skip("the estimate says that it does not fit")
    gc.collect()
    torch.cuda.empty_cache()
    config, compute = start(words, sequences)
    state = build_state(config, config.model, compute)
    make_steps(state, config, 1)
    torch.cuda.reset_peak_memory_stats()
    make_steps(state, config, 1)
    ratio = torch.cuda.max_memory_allocated() / needed(sequences)
    print(f"{words}, {size}: {sequences} sequences, {needed(sequences) / 1e9:.2f} GB estimated, x {ratio:.3f}")
    assert 0.9 < ratio < 1.1


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_step_does_not_wait(compiled: str, optimizer: str, dropout: float, weightless: None) -> None:
    config, compute = start(f"tiny optimizer={optimizer} model.dropout={dropout}", sequences=4, vocab_size=64)
    hardware = config.hardware.model_copy(update={"compile": compiled == "true"})
    config = config.model_copy(update={"hardware": hardware})
    state = build_state(config, config.model, compute)
    make_steps(state, config, 2)  # allocators, libraries and the compiler set themselves up
    before = waits()
    torch.cuda.set_sync_debug_mode("error")
    try:
        make_steps(state, config, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits() == before
