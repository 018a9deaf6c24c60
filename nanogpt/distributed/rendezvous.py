"""Rendezvous of the ranks: they exchange reports and process ids through a key-value store before any collective."""
# pyright: reportPrivateImportUsage=false
# torch.distributed does not declare its stores as exported

import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from nanogpt.distributed.env import STORE_VARIABLE, RankEnv
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.errors import LabError, PeerLost, error_from_exit_code, one_line
from nanogpt.gpus import RankReport

T = TypeVar("T")
RENDEZVOUS_COUNT = itertools.count()  # a process may run several trainings


def rendezvous(
    rank_env: RankEnv,
    timeout: float,
    prepare: Callable[[Sequence[RankReport]], T],
    describe: Callable[[], RankReport] = dict,
) -> tuple[T, ProcessGroup]:
    """Exchange what `describe` returns on each rank, call `prepare` with the list, and return its result and the group.

    If `prepare` fails on any rank, every rank raises that error and one prints it. With one rank the list is empty.
    Raises PeerLost naming the ranks that did not arrive within `timeout` seconds.
    """
    if rank_env.world == 1:
        return prepare([]), ProcessGroup()
    ready, problem = list[T](), None
    try:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's, which keeps its store
        store = dist.PrefixStore(f"{attempt}/{next(RENDEZVOUS_COUNT)}", rendezvous_store(rank_env, timeout))
        reports = exchange_values(store, rank_env, "facts", describe(), timeout)
        try:
            ready.append(prepare(reports))
        except LabError as error:
            problem = error
        local_pids = exchange_hosts(store, rank_env, timeout, problem)
    except (RuntimeError, ValueError) as error:
        where = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')} MASTER_PORT={os.environ.get('MASTER_PORT')}"
        raise PeerLost(f"{one_line(where)}: {one_line(str(error).splitlines()[0], 200)}") from None
    return ready[0], ProcessGroup(rank_env, store, local_pids)


def rendezvous_store(rank_env: RankEnv, timeout: float) -> dist.Store:
    """Return the key-value store of all ranks: a file if one command started them, else rank 0's or torchrun's."""
    if STORE_VARIABLE in os.environ:
        return dist.FileStore(os.environ[STORE_VARIABLE], rank_env.world)
    torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank_env.rank == 0 and not torchruns,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
        multi_tenant=True,
    )


def exchange_values(store: dist.Store, rank_env: RankEnv, name: str, mine: object, timeout: float) -> list[Any]:
    """Return the value of every rank under this name, by rank. Raises PeerLost naming the ranks without one."""
    store.set(f"{name}/{rank_env.rank}", json.dumps(mine))
    missing = list(range(rank_env.world))
    deadline = time.monotonic() + timeout
    while missing := [rank for rank in missing if not store.check([f"{name}/{rank}"])]:
        if time.monotonic() > deadline:
            names = ", ".join(map(str, missing))
            raise PeerLost(f"of {rank_env.world} ranks these didn't come within {timeout:g} s: {names}")
        time.sleep(0.02)
    return [json.loads(store.get(f"{name}/{rank}")) for rank in range(rank_env.world)]


def exchange_hosts(store: dist.Store, rank_env: RankEnv, timeout: float, problem: LabError | None) -> dict[int, int]:
    """Exchange machines and process ids. Returns {rank: process id} for this machine and container.

    If a rank brings a problem, every rank raises that error.
    """
    here = pid_namespace()
    trouble = problem and [problem.exit_code, str(problem)]
    homes = exchange_values(store, rank_env, "home", [here, os.getpid(), trouble], timeout)
    for rank, (_, _, trouble) in enumerate(homes):
        if trouble:
            exit_barrier(store, rank_env)
            raise problem if problem and rank == rank_env.rank else error_from_exit_code(*trouble)
    return {rank: pid for rank, (home, pid, _) in enumerate(homes) if home == here}


def exit_barrier(store: dist.Store, rank_env: RankEnv) -> None:
    """Let rank 0, which may hold the store, wait until the others have read it, for at most five seconds."""
    store.set(f"read/{rank_env.rank}", "")
    deadline = time.monotonic() + 5
    while rank_env.rank == 0 and time.monotonic() < deadline:
        if all(store.check([f"read/{rank}"]) for rank in range(rank_env.world)):
            return
        time.sleep(0.02)


def pid_namespace() -> str:
    """Return the name of the space in which process ids are unique: this machine, or this container of it."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
