"""Assignment of GPUs to ranks. Every rank reports the GPUs it sees, and all compute the same assignment.

A rank may see all GPUs of its machine, as under torchrun, or some of them (`srun --gpus-per-task=2`, `--gpu-bind`), or
only its own. CUDA_VISIBLE_DEVICES may name them by number, UUID or MIG slice.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nanogpt.distributed.env import STORE_VARIABLE, RankEnv, is_started_by_srun
from nanogpt.errors import BadEnvironment, BadInput, one_line

VISIBLE = "CUDA_VISIBLE_DEVICES"
RankReport = Mapping[str, Any]
"""Report of a rank to the others, as JSON: its GPUs, its machine, and why other machines cannot reach it."""


def report_gpus(device: str, rank_env: RankEnv) -> RankReport:
    """Return the report of this rank for the other ranks."""
    return {
        "gpus": list_gpus(device),
        "machine": machine_id(),
        "unreachable": find_unreachable() if rank_env.world > rank_env.local_world else "",
    }


def list_gpus(device: str) -> list[str]:
    """Return the identities of the visible GPUs that the config value `device` allows."""
    if not (device == "auto" or device.startswith("cuda")) or not torch.cuda.is_available():
        return []
    try:
        found = [identify_gpu(number) for number in range(torch.cuda.device_count())]
    except RuntimeError:  # a GPU that cannot be used; set_up_device raises the reason
        return []
    if len(set(found)) < len(found):  # virtual GPUs may all have the same UUID
        found = [f"{machine_id()} {name_gpu(number)}" for number in range(len(found))]
    _, colon, number = device.partition(":")
    return found[int(number) : int(number) + 1] if colon else found


def name_gpu(number: int) -> str:
    """Return the name of a visible GPU in CUDA_VISIBLE_DEVICES, or its number if that is not set."""
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",")]
    return named[number] if number < len(named) and named[number] else str(number)


def identify_gpu(number: int) -> str:
    """Return a string that identifies this GPU, or MIG slice, among all machines."""
    if (name := name_gpu(number)).startswith("MIG-"):
        return name
    about: Any = torch.cuda.get_device_properties(number)
    return str(getattr(about, "uuid", "")) or f"{machine_id()} {name}"


def machine_id() -> str:
    """Return a string that identifies this machine, equal in all its containers."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def find_unreachable() -> str:
    """Return why gloo on another machine cannot reach this one by its name; empty if it can."""
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return ""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return f"its name {name} has no address"
    return f"its name {name} resolves to {address}" if address.startswith("127.") else ""


def assign_gpus(seen: Sequence[Sequence[str]]) -> list[int | None]:
    """Return for each rank the index in its list of a GPU that no other rank has, or None if there is none left.

    If all ranks of a machine see the same GPUs, local rank k takes GPU k. Otherwise a rank may move to another GPU of
    its list to free one for a rank that sees fewer (bipartite matching).
    """
    owner: dict[str, int] = {}

    def assign(rank: int, tried: set[str]) -> bool:
        free = [gpu for gpu in seen[rank] if gpu not in owner]
        for gpu in [*free, *seen[rank]]:
            if gpu in tried:
                continue
            tried.add(gpu)
            if gpu not in owner or assign(owner[gpu], tried):
                owner[gpu] = rank
                return True
        return False

    for rank in range(len(seen)):
        assign(rank, set())
    taken = {rank: gpu for gpu, rank in owner.items()}
    return [list(gpus).index(taken[rank]) if rank in taken else None for rank, gpus in enumerate(seen)]


def choose_gpu(reports: Sequence[RankReport], rank_env: RankEnv, section: str = "hardware.") -> int | None:
    """Return the index of this rank's GPU; None if no rank has any.

    Raises BadInput if ranks would share a GPU, BadEnvironment if only some ranks see one. All ranks raise the same.
    """
    check_reachable(reports)
    seen: list[list[str]] = [list(report["gpus"]) for report in reports]
    if not any(seen):
        return None
    if blind := [rank for rank, gpus in enumerate(seen) if not gpus]:
        hint = f"look at {VISIBLE} and nvidia-smi there, or give {section}device=cpu"
        raise BadEnvironment(f"rank {blind[0]} sees no GPU, but other ranks do: {hint}")
    chosen = assign_gpus(seen)
    if None in chosen:
        raise sharing_error(seen, chosen.index(None), rank_env, section)
    return chosen[rank_env.rank]


def sharing_error(seen: list[list[str]], rank: int, rank_env: RankEnv, section: str) -> BadInput:
    """Return the error for a rank without a GPU of its own, naming what set the number of ranks."""
    mine = set(seen[rank])
    ranks = [number for number, gpus in enumerate(seen) if mine & set(gpus)]
    count = len({gpu for number in ranks for gpu in seen[number]})
    gpus = f"{count} GPU{'s' if count > 1 else ''}"
    named = f" ({VISIBLE}={one_line(os.environ[VISIBLE])})" if VISIBLE in os.environ else ""
    if STORE_VARIABLE in os.environ:
        return BadInput(f"{section}devices={rank_env.local_world}: this machine has {gpus}{named}")
    if is_started_by_srun(os.environ):
        key, remedy = f"srun --ntasks-per-node={rank_env.local_world}", "srun --gpus-per-task=1, without --gpu-bind"
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        key, remedy = f"--nproc-per-node={rank_env.local_world}", f"torchrun --nproc-per-node={count}"
    else:
        key, remedy = f"LOCAL_WORLD_SIZE={rank_env.local_world}", f"another {VISIBLE} for each rank"
    among = ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")
    return BadInput(f"{key}: ranks {among} see only {gpus}{named}, and each needs one of its own; {remedy}")


def check_reachable(reports: Sequence[RankReport]) -> None:
    """Raise BadEnvironment if ranks on several machines cannot reach each other by name."""
    if len({report["machine"] for report in reports}) == 1:
        return
    for rank, report in enumerate(reports):
        if report["unreachable"]:
            ours = ", ".join(name for _, name in socket.if_nameindex() if name != "lo")
            remedy = (
                "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface of the network between the machines"
            )
            raise BadEnvironment(
                f"rank {rank}: {report['unreachable']}, where ranks on other machines can't reach it; {remedy}: {ours}"
            )
