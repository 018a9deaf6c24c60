"""Which GPU each rank takes: every rank tells all others what it sees, and all come to the same answer.

A rank may see all GPUs of its machine, as under torchrun, a few of them (`srun --gpus-per-task=2`, `--gpu-bind`), or
the one that is its own; CUDA_VISIBLE_DEVICES may name them by number, UUID or MIG slice.
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
Facts = Mapping[str, Any]
"""A rank's GPUs, its machine, and whether other machines can reach it, for the other ranks."""


def describe_self(device: str, place: RankEnv) -> Facts:
    """Return what the other ranks have to know of this one, as JSON."""
    return {
        "gpus": list_gpus(device),
        "machine": machine_id(),
        "unreachable": find_unreachable() if place.world > place.local_world else "",
    }


def list_gpus(device: str) -> list[str]:
    """Return the identities of the GPUs that the config value `device` allows."""
    if not (device == "auto" or device.startswith("cuda")) or not torch.cuda.is_available():
        return []
    try:
        found = [identify_gpu(number) for number in range(torch.cuda.device_count())]
    except RuntimeError:  # a GPU that can't be used: setting it up will say why
        return []
    if len(set(found)) < len(found):  # virtual GPUs may all have the same UUID
        found = [f"{machine_id()} {name_gpu(number)}" for number in range(len(found))]
    _, colon, number = device.partition(":")
    return found[int(number) : int(number) + 1] if colon else found


def name_gpu(number: int) -> str:
    """Return what CUDA_VISIBLE_DEVICES calls the GPU that has this number here; the number where it says nothing."""
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",")]
    return named[number] if number < len(named) and named[number] else str(number)


def identify_gpu(number: int) -> str:
    """Return what tells this GPU, or slice of one, from all others."""
    if (name := name_gpu(number)).startswith("MIG-"):
        return name
    about: Any = torch.cuda.get_device_properties(number)
    return str(getattr(about, "uuid", "")) or f"{machine_id()} {name}"


def machine_id() -> str:
    """Return what all processes of one machine have in common, in whatever container they are."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def find_unreachable() -> str:
    """Return why gloo on another machine couldn't reach this one by its name; empty if it could."""
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return ""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return f"its name {name} has no address"
    return f"its name {name} resolves to {address}" if address.startswith("127.") else ""


def assign_gpus(seen: Sequence[Sequence[str]]) -> list[int | None]:
    """Return for each rank the place in its list of a GPU that no other rank has; None for a rank that gets none.

    Where all ranks of a machine see the same GPUs the k-th of them takes the k-th GPU. Otherwise a rank may move to
    another of its GPUs to make room for one that sees fewer.
    """
    owner: dict[str, int] = {}

    def place(rank: int, tried: set[str]) -> bool:
        free = [gpu for gpu in seen[rank] if gpu not in owner]
        for gpu in [*free, *seen[rank]]:
            if gpu in tried:
                continue
            tried.add(gpu)
            if gpu not in owner or place(owner[gpu], tried):
                owner[gpu] = rank
                return True
        return False

    for rank in range(len(seen)):
        place(rank, set())
    taken = {rank: gpu for gpu, rank in owner.items()}
    return [list(gpus).index(taken[rank]) if rank in taken else None for rank, gpus in enumerate(seen)]


def choose_gpu(facts: Sequence[Facts], place: RankEnv, section: str = "hardware.") -> int | None:
    """Return the number of the GPU that this rank takes; None if no rank has any.

    Raises BadInput where ranks would share one, BadEnvironment where only some ranks see GPUs. All ranks raise alike.
    """
    check_reachable(facts)
    seen: list[list[str]] = [list(one["gpus"]) for one in facts]
    if not any(seen):
        return None
    if blind := [rank for rank, gpus in enumerate(seen) if not gpus]:
        hint = f"look at {VISIBLE} and nvidia-smi there, or give {section}device=cpu"
        raise BadEnvironment(f"rank {blind[0]} sees no GPU, but other ranks do: {hint}")
    chosen = assign_gpus(seen)
    if None in chosen:
        raise explain_sharing(seen, chosen.index(None), place, section)
    return chosen[place.rank]


def explain_sharing(seen: list[list[str]], rank: int, place: RankEnv, section: str) -> BadInput:
    """Return the error of a rank that finds no GPU of its own, naming what decided how many ranks there are."""
    mine = set(seen[rank])
    ranks = [number for number, gpus in enumerate(seen) if mine & set(gpus)]
    count = len({gpu for number in ranks for gpu in seen[number]})
    gpus = f"{count} GPU{'s' if count > 1 else ''}"
    named = f" ({VISIBLE}={one_line(os.environ[VISIBLE])})" if VISIBLE in os.environ else ""
    if STORE_VARIABLE in os.environ:
        return BadInput(f"{section}devices={place.local_world}: this machine has {gpus}{named}")
    if is_started_by_srun(os.environ):
        key, remedy = f"srun --ntasks-per-node={place.local_world}", "srun --gpus-per-task=1, without --gpu-bind"
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        key, remedy = f"--nproc-per-node={place.local_world}", f"torchrun --nproc-per-node={count}"
    else:
        key, remedy = f"LOCAL_WORLD_SIZE={place.local_world}", f"another {VISIBLE} for each rank"
    among = ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")
    return BadInput(f"{key}: ranks {among} see only {gpus}{named}, and each needs one of its own; {remedy}")


def check_reachable(facts: Sequence[Facts]) -> None:
    """Check that ranks on several machines can find each other by name. Raises BadEnvironment."""
    if len({one["machine"] for one in facts}) == 1:
        return
    for rank, one in enumerate(facts):
        if one["unreachable"]:
            ours = ", ".join(name for _, name in socket.if_nameindex() if name != "lo")
            remedy = (
                "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface of the network between the machines"
            )
            raise BadEnvironment(
                f"rank {rank}: {one['unreachable']}, where ranks on other machines can't reach it; {remedy}: {ours}"
            )
