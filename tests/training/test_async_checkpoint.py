"""Saving beside the training."""

from pathlib import Path

import pytest
import torch

from cli.sweep_request import read_configs
from nanogpt.config import TrainConfig
from nanogpt.model.gpt import GPT
from nanogpt.run_directory import RunDirectory
from nanogpt.training import async_checkpoint
from nanogpt.training.async_checkpoint import AsyncCheckpointer, allocate_copy, plan_blocks


def test_the_writer_takes_no_core_from_the_steps(tmp_path: Path) -> None:
    """OpenMP threads of the writer would be more than there are cores, and then those of the steps sleep and wake up
    for every product.
    """
    torch.set_num_threads(2)
    saver = AsyncCheckpointer(RunDirectory(tmp_path), 1, print)
    try:
        inside = saver.thread.submit(lambda: (torch.zeros(1_000_000).isfinite().all(), torch.get_num_threads()))
        assert inside.result()[1] == 1
        assert torch.get_num_threads() == 2
    finally:
        saver.close()


@pytest.mark.parametrize("name", ["tiny", "gpt2", "gpt2_xl"])
def test_pinned_memory_is_hardly_more_than_what_is_saved(name: str) -> None:
    """Alone, each tensor of gpt2 would be rounded up to a power of two: its state would take 1.5 times its bytes."""
    model = read_configs("train", TrainConfig, [f"model={name}", "model.vocab_size=50257"])[0].model
    with torch.device("meta"):
        sizes = 3 * [parameter.nbytes for parameter in GPT(model).parameters()]
    blocks, places = plan_blocks(sizes)
    assert all(size & (size - 1) == 0 for size in blocks)
    alone = sum(1 << (size - 1).bit_length() for size in sizes)
    assert sum(sizes) <= sum(blocks) <= min(alone, (1.5 if name == "tiny" else 1.1) * sum(sizes))
    for block, size in enumerate(blocks):
        parts = sorted((offset, offset + n) for n, (b, offset) in zip(sizes, places, strict=True) if b == block)
        ends = [0, *(end for _, end in parts)]
        assert all(start >= end and start % 64 == 0 for (start, _), end in zip(parts, ends, strict=False))
        assert ends[-1] <= size


def test_tensors_that_share_pinned_memory_keep_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = torch.empty, list[int]()

    def empty(size: int, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        asked.append(size)
        assert pin_memory
        return real(size, dtype=dtype)

    parts = {
        "model": {"weight": torch.randn(7, 3), "bias": torch.randn(5).bfloat16(), "empty": torch.zeros(0)},
        "optimizer": {"step": torch.tensor(3.0), "seen": torch.tensor([True, False, True])},
    }
    monkeypatch.setattr(async_checkpoint.torch, "empty", empty)
    copy = allocate_copy(parts, pinned=True)
    assert asked and {name: part.keys() for name, part in copy.items()} == {
        name: part.keys() for name, part in parts.items()
    }
    for name, part in parts.items():
        for key, tensor in part.items():
            copy[name][key].copy_(tensor)
    for name, part in parts.items():
        for key, tensor in part.items():
            assert torch.equal(copy[name][key], tensor) and copy[name][key].shape == tensor.shape, key
