"""The rank of this process, read from the environment. Without torch, because commands and launchers import it."""

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from nanogpt.errors import BadInput, one_line

STORE_VARIABLE = "NANOGPT_STORE"  # path of the rendezvous file of the ranks that nanogpt/distributed/spawn.py starts


@dataclass(frozen=True)
class RankEnv:
    """Rank and world size of this process, over all machines and on its own."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def read_rank_env(environment: Mapping[str, str]) -> RankEnv:
    """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, which torchrun sets. Without them there is one rank.

    Raises BadInput if they contradict each other.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return RankEnv()
    rank, world = read_whole_number(environment, "RANK"), read_whole_number(environment, "WORLD_SIZE")
    local_world = read_whole_number(environment, "LOCAL_WORLD_SIZE", 1 if "LOCAL_RANK" not in environment else world)
    local_rank = read_whole_number(environment, "LOCAL_RANK", 0)
    for name, value, size, limit in (
        ("RANK", rank, "WORLD_SIZE", world),
        ("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_world),
    ):
        if value >= limit:
            raise BadInput(f"{name}={value}: must be below {size}={limit}")
    if local_world > world:
        raise BadInput(f"LOCAL_WORLD_SIZE={local_world}: must be at most WORLD_SIZE={world}")
    if world > 1 and STORE_VARIABLE not in environment:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not environment.get(name):
                raise BadInput(f"{name} is not set, but WORLD_SIZE={world}; torchrun sets both")
        read_whole_number(environment, "MASTER_PORT")
    return RankEnv(rank, world, local_rank, local_world)


def set_rank_env_from_slurm(environment: MutableMapping[str, str]) -> None:
    """Set RANK and the other variables of torchrun from Slurm's, if srun started this process as one of several tasks.

    The port is computed from job, step and restart count. So jobs that share a node use different ports, and a restart
    tries another one. It is below the range from which the system assigns ports.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")  # SLURM_NTASKS is also set outside of steps
    if tasks == "1" or "SLURM_PROCID" not in environment or {"RANK", "WORLD_SIZE"} & environment.keys():
        return
    node = read_whole_number(environment, "SLURM_NODEID", 0)
    job, step, restart = (
        read_whole_number(environment, f"SLURM_{name}", 0) for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT")
    )
    port = 10_000 + (job + 104_729 * (step % 1000) + 7_919 * restart) % 20_000
    environment.update(
        {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": tasks,
            "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
            "LOCAL_WORLD_SIZE": str(tasks_on_node(environment.get("SLURM_STEP_TASKS_PER_NODE", tasks), node)),
        }
    )
    environment.setdefault("MASTER_ADDR", first_host(environment.get("SLURM_STEP_NODELIST", "localhost")))
    environment.setdefault("MASTER_PORT", str(port))


def is_started_by_srun(environment: Mapping[str, str]) -> bool:
    """Return whether srun started one task for each rank, rather than torchrun or `devices=N` inside an allocation."""
    if STORE_VARIABLE in environment or "TORCHELASTIC_RUN_ID" in environment:
        return False
    pairs = (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    return all(theirs in environment and environment.get(ours) == environment[theirs] for ours, theirs in pairs)


def tasks_on_node(counts: str, node: int) -> int:
    """Return the number of tasks on a node, given Slurm's list of tasks per node such as `4(x3),2`."""
    each: list[int] = []
    for count, times in re.findall(r"([0-9]+)(?:\(x([0-9]+)\))?", counts):
        each += [int(count)] * int(times or 1)
    if node >= len(each):
        raise BadInput(f"SLURM_NODEID={node}: but SLURM_STEP_TASKS_PER_NODE={one_line(counts)}")
    return each[node]


def first_host(hosts: str) -> str:
    """Return the first host of Slurm's list: `gpu-007.rack` for `gpu-[007-009,12].rack,login1`.

    A name may have several brackets: `r[1-2]n[01-04]` begins with `r1n01`.
    """
    name = re.match(r"(?:[^\[,]|\[[^\]]*\])*", hosts)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", name[0]) if name else hosts


def read_whole_number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Return the whole number that a variable holds. Raises BadInput."""
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"[0-9]{1,18}", text):
        why = "is not set, but other variables of a rank are" if text is None else "not a whole number"
        raise BadInput(
            f"{name}={one_line(text or '')}: {why}; start the ranks with torchrun, or unset RANK, WORLD_SIZE"
        )
    return int(text)
