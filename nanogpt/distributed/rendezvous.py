"""How the ranks of a run meet: through a key-value store they exchange facts and hosts before the first collective."""
# pyright: reportPrivateImportUsage=false
# torch.distributed offers its stores without declaring them exported

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
from nanogpt.gpus import Facts

T = TypeVar("T")
RENDEZVOUS_COUNT = itertools.count()  # a process may run several trainings, one after the other


def rendezvous(
    place: RankEnv, timeout: float, prepare: Callable[[Sequence[Facts]], T], describe: Callable[[], Facts] = dict
) -> tuple[T, ProcessGroup]:
    """Tell the other ranks what `describe` returns, run `prepare` on what all of them told, and find them.

    If `prepare` fails on any rank, every rank raises that error and one prints it. With one rank `prepare` gets
    nothing. Raises PeerLost naming the ranks that didn't come within `timeout` seconds.
    """
    if place.world == 1:
        return prepare([]), ProcessGroup()
    ready, problem = list[T](), None
    try:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's, which keeps its store
        store = dist.PrefixStore(f"{attempt}/{next(RENDEZVOUS_COUNT)}", rendezvous_store(place, timeout))
        facts = exchange_values(store, place, "facts", describe(), timeout)
        try:
            ready.append(prepare(facts))
        except LabError as error:
            problem = error
        neighbours = exchange_hosts(store, place, timeout, problem)
    except (RuntimeError, ValueError) as error:
        where = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')} MASTER_PORT={os.environ.get('MASTER_PORT')}"
        raise PeerLost(f"{one_line(where)}: {one_line(str(error).splitlines()[0], 200)}") from None
    return ready[0], ProcessGroup(place, store, neighbours)


def rendezvous_store(place: RankEnv, timeout: float) -> dist.Store:
    """The key-value store all ranks reach: a file when one command started them all, else rank 0's or torchrun's."""
    if STORE_VARIABLE in os.environ:
        return dist.FileStore(os.environ[STORE_VARIABLE], place.world)
    torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=place.rank == 0 and not torchruns,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
        multi_tenant=True,
    )


def exchange_values(store: dist.Store, place: RankEnv, name: str, mine: object, timeout: float) -> list[Any]:
    """Return what every rank gives under this name, by rank. Raises PeerLost naming those that didn't in time."""
    store.set(f"{name}/{place.rank}", json.dumps(mine))
    missing = list(range(place.world))
    deadline = time.monotonic() + timeout
    while missing := [rank for rank in missing if not store.check([f"{name}/{rank}"])]:
        if time.monotonic() > deadline:
            names = ", ".join(map(str, missing))
            raise PeerLost(f"of {place.world} ranks these didn't come within {timeout:g} s: {names}")
        time.sleep(0.02)
    return [json.loads(store.get(f"{name}/{rank}")) for rank in range(place.world)]


def exchange_hosts(store: dist.Store, place: RankEnv, timeout: float, problem: LabError | None) -> dict[int, int]:
    """Tell where this rank lives and learn it of all others; {rank: process id} of neighbours."""
    here = pid_namespace()
    trouble = problem and [problem.exit_code, str(problem)]
    homes = exchange_values(store, place, "home", [here, os.getpid(), trouble], timeout)
    for rank, (_, _, trouble) in enumerate(homes):
        if trouble:
            exit_barrier(store, place)
            raise problem if problem and rank == place.rank else error_from_exit_code(*trouble)
    return {rank: pid for rank, (home, pid, _) in enumerate(homes) if home == here}


def exit_barrier(store: dist.Store, place: RankEnv) -> None:
    """Rank 0 may hold the store: it stays until the others have read, or five seconds."""
    store.set(f"read/{place.rank}", "")
    deadline = time.monotonic() + 5
    while place.rank == 0 and time.monotonic() < deadline:
        if all(store.check([f"read/{rank}"]) for rank in range(place.world)):
            return
        time.sleep(0.02)


def pid_namespace() -> str:
    """Where process numbers mean the same: this machine, or this container of it."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
