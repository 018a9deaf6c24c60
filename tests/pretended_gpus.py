"""A rank on a machine with pretended GPUs: python -m tests.pretended_gpus COUNT [DEVICE]

Prints `rank GPU`, or ends as train.py would. The machine has GPUs GPU-<node>-0 to COUNT - 1 and a slice MIG-<node>-0;
CUDA_VISIBLE_DEVICES chooses among them by number or by name, as torch does.
"""

import os
import sys
from types import SimpleNamespace

import torch

from cli.entry import exit_on_error
from nanogpt.distributed.env import read_rank_env, set_rank_env_from_slurm
from nanogpt.distributed.rendezvous import rendezvous
from nanogpt.gpus import VISIBLE, choose_gpu, list_gpus, report_gpus


def pretend(count: int, node: str) -> None:
    """Let torch see the GPUs of the machine `node` that CUDA_VISIBLE_DEVICES names."""
    names = [f"GPU-{node}-{number}" for number in range(count)]
    wanted = [word for word in os.environ.get(VISIBLE, ",".join(names)).split(",") if word]
    seen = [names[int(word)] if word.isdigit() else word for word in wanted]
    torch.cuda.is_available = lambda: bool(seen)
    torch.cuda.device_count = lambda: len(seen)
    torch.cuda.get_device_properties = lambda number: SimpleNamespace(uuid=seen[number])  # type: ignore[assignment]


def main() -> int:
    """See the module's docstring."""
    device = sys.argv[2] if len(sys.argv) > 2 else "auto"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    set_rank_env_from_slurm(os.environ)
    pretend(int(sys.argv[1]), os.environ.get("SLURM_NODEID", "0"))
    place = read_rank_env(os.environ)
    chosen, group = rendezvous(
        place, 60, lambda facts: choose_gpu(facts, place) if facts else 0, lambda: report_gpus(device, place)
    )
    group.join(torch.device("cpu"))
    group.all_reduce_max(0)  # rank 0 holds the store: it stays until the others have read
    gpus = list_gpus(device)
    print(place.rank, "none" if chosen is None else gpus[chosen], flush=True)
    return 0


if __name__ == "__main__":
    exit_on_error("ranks", main)
