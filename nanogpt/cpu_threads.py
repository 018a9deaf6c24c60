"""How many CPU threads a rank should use, without torch: one for each physical core that is its own."""

import math
import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
SPIN_COUNT = "1000"  # iterations, a few microseconds; measured in docs/benchmarks.md


@dataclass(frozen=True)
class Threads:
    """A number of threads."""

    number: int
    why: str
    """Where it is from, for a person."""


def threads_for(environment: Mapping[str, str], local_world: int = 1) -> Threads | None:
    """Of one of the `local_world` ranks of this machine; None where the system doesn't tell.

    OMP_NUM_THREADS is what somebody wants for each process. Else a rank gets its share of the physical cores that this
    process may run on (two threads of one core slow each other down in matrix products), no more than a container's
    limit or Slurm's allocation.
    """
    if (wanted := positive(environment, "OMP_NUM_THREADS")) is not None:
        return Threads(wanted, "OMP_NUM_THREADS")
    if not hasattr(os, "sched_getaffinity"):
        return None
    cpus = os.sched_getaffinity(0)
    cores, quota, allocated = physical(cpus), cgroup_limit(), positive(environment, "SLURM_CPUS_PER_TASK")
    found = Threads(cores, "physical cores" if cores < len(cpus) else "cores")
    if quota is not None and quota < found.number:
        found = Threads(max(1, math.floor(quota)), "the container's limit")
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1") != "1" and "SLURM_PROCID" in environment
    if tasks and allocated is not None:  # each rank is a task, and the allocation is its own
        return found if found.number <= allocated else Threads(allocated, "SLURM_CPUS_PER_TASK")
    if allocated is not None and allocated < found.number:
        found = Threads(allocated, "SLURM_CPUS_PER_TASK")
    if local_world > 1:
        return Threads(
            max(1, found.number // local_world), f"{found.number} {found.why}, shared by {local_world} ranks"
        )
    return found


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Let waiting OpenMP threads sleep after a short spin, unless the user has set a policy. Call before torch loads.

    GNU OpenMP spins for milliseconds by default. On a busy machine a spinning thread takes the core from the thread it
    waits for.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT


def positive(environment: Mapping[str, str], name: str) -> int | None:
    """A variable's number; of OpenMP's lists, one for each level of nesting, the first."""
    text = environment.get(name, "").split(",")[0].strip()
    return int(text) if text.isascii() and text.isdecimal() and int(text) > 0 else None


def physical(cpus: set[int]) -> int:
    """Cores that these CPUs are on; where the system doesn't tell, each is one."""
    cores: set[str] = set()
    for cpu in cpus:
        try:
            cores.add((CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(f"cpu {cpu}")
    return len(cores)


def cgroup_limit() -> float | None:
    """CPUs' worth of time that the control groups of this process allow, version 2 or 1; None without a limit."""
    limits: list[float] = []
    with suppress(OSError, ValueError):
        unified = [line[3:] for line in MEMBERSHIP.read_text().splitlines() if line.startswith("0::")]
        own = CGROUPS / (unified[0].lstrip("/") if unified else "")
        for folder in (own, *own.parents):
            if folder.is_relative_to(CGROUPS) and (folder / "cpu.max").exists():
                limits.append(share(*(folder / "cpu.max").read_text().split()))
    with suppress(OSError, ValueError):
        files = [CGROUPS / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")]
        limits.append(share(*(file.read_text().strip() for file in files)))
    least = min(limits, default=math.inf)
    return None if math.isinf(least) else least


def share(quota: str, period: str) -> float:
    """`max` and -1 are no limit."""
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
