"""CPU threads of a rank: one per physical core of its share. Without torch."""

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
    """A number of threads and its origin."""

    number: int
    why: str
    """The origin, for the run header."""


def choose_threads(environment: Mapping[str, str], local_world: int = 1) -> Threads | None:
    """Return the threads of one of `local_world` ranks on this machine; None if the system does not tell its CPUs.

    OMP_NUM_THREADS sets the number for each process. Else a rank gets its share of the physical cores that this process
    may run on, because two threads on one core slow down matrix products, within the limits of the container and of
    Slurm's allocation.
    """
    if (wanted := read_positive(environment, "OMP_NUM_THREADS")) is not None:
        return Threads(wanted, "OMP_NUM_THREADS")
    if not hasattr(os, "sched_getaffinity"):
        return None
    cpus = os.sched_getaffinity(0)
    cores, quota, allocated = (
        count_physical_cores(cpus),
        cgroup_limit(),
        read_positive(environment, "SLURM_CPUS_PER_TASK"),
    )
    found = Threads(cores, "physical cores" if cores < len(cpus) else "cores")
    if quota is not None and quota < found.number:
        found = Threads(max(1, math.floor(quota)), "the container's limit")
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1") != "1" and "SLURM_PROCID" in environment
    if tasks and allocated is not None:  # each rank is a task with an allocation of its own
        return found if found.number <= allocated else Threads(allocated, "SLURM_CPUS_PER_TASK")
    if allocated is not None and allocated < found.number:
        found = Threads(allocated, "SLURM_CPUS_PER_TASK")
    if local_world > 1:
        return Threads(
            max(1, found.number // local_world), f"{found.number} {found.why}, shared by {local_world} ranks"
        )
    return found


def share_cores(ranks: int) -> int:
    """Return the cores of one of several ranks that run on this machine at once, 1 at least."""
    found = choose_threads({}, ranks)
    return found.number if found else max(1, (os.cpu_count() or 1) // ranks)


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Let waiting OpenMP threads sleep after a short spin, unless the user has set a policy. Call before torch loads.

    GNU OpenMP spins for milliseconds by default. On a busy machine a spinning thread occupies the core that the thread
    it waits for needs.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT


def read_positive(environment: Mapping[str, str], name: str) -> int | None:
    """Return the positive number that a variable holds, of OpenMP's list by nesting level the first, else None."""
    text = environment.get(name, "").split(",")[0].strip()
    return int(text) if text.isascii() and text.isdecimal() and int(text) > 0 else None


def count_physical_cores(cpus: set[int]) -> int:
    """Return the number of cores that these CPUs are on. A CPU of unknown core counts as one."""
    cores: set[str] = set()
    for cpu in cpus:
        try:
            cores.add((CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(f"cpu {cpu}")
    return len(cores)


def cgroup_limit() -> float | None:
    """Return the CPU limit of this process's control groups (version 2 or 1), a fraction perhaps; None without one."""
    limits: list[float] = []
    with suppress(OSError, ValueError):
        unified = [line[3:] for line in MEMBERSHIP.read_text().splitlines() if line.startswith("0::")]
        own = CGROUPS / (unified[0].lstrip("/") if unified else "")
        for folder in (own, *own.parents):
            if folder.is_relative_to(CGROUPS) and (folder / "cpu.max").exists():
                limits.append(quota_to_cpus(*(folder / "cpu.max").read_text().split()))
    with suppress(OSError, ValueError):
        files = [CGROUPS / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")]
        limits.append(quota_to_cpus(*(file.read_text().strip() for file in files)))
    least = min(limits, default=math.inf)
    return None if math.isinf(least) else least


def quota_to_cpus(quota: str, period: str) -> float:
    """Return a quota and its period as a number of CPUs; `max` and -1 mean no limit."""
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
