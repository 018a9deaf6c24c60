"""Saving beside the training."""

from pathlib import Path

import torch

from nanogpt.run_directory import RunDirectory
from nanogpt.training.async_checkpoint import AsyncCheckpointer


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
