"""Who the ranks of a run are and how they talk: one process a device, all alike but for rank 0, the leader.

Gradients and losses are summed over nccl on GPUs and gloo on CPUs; agreements (stop, errors, configs) are small CPU
messages over gloo, as JSON, never pickles. With one rank every method is the identity, so callers needn't ask.
"""
# pyright: reportPrivateImportUsage=false
# torch.distributed offers its stores without declaring them exported

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanogpt.device_errors import COLLECTIVE, as_group_error, find_library
from nanogpt.distributed.env import RankEnv
from nanogpt.errors import BadInput, LabError, PeerLost, error_from_exit_code
from nanogpt.run_state import is_alive

T = TypeVar("T")
SINGLE_RANK = RankEnv()
# torch.distributed.all_gather_into_tensor until torch 2.13, which warns of that name
ALL_GATHER: Callable[..., Any] = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor")  # noqa: B009
# DistributedDataParallel's broadcast_buffers until torch 2.13, which warns of that name
SYNC_BUFFERS = {"forward_sync_buffers", "broadcast_buffers"} & signature(DistributedDataParallel).parameters.keys()
NO_BUFFERS: dict[str, Any] = {max(SYNC_BUFFERS): False}
COLLECTIVE_TIMEOUT = timedelta(
    days=7
)  # of the collectives themselves: distributed/watchdog.py is what gives up on a rank


class ProcessGroup:
    """The ranks of a run, seen from one of them."""

    def __init__(
        self, place: RankEnv = SINGLE_RANK, store: dist.Store | None = None, local_pids: dict[int, int] | None = None
    ) -> None:
        self.rank, self.world, self.store = place.rank, place.world, store
        self.is_rank0 = place.rank == 0
        self.recovery_hint = "the same command continues from the last checkpoint"
        """What a lost rank calls for."""
        self.connected = False
        """True once a message went from rank to rank."""
        self.neighbours = local_pids or {}
        """Process ids of the ranks that this one can see live and die: those of its machine and container."""

    def join(self, device: torch.device) -> None:
        """Open the channels; before this only `lost` works. Raises PeerLost."""
        if self.world == 1:
            return
        gpu = device.type == "cuda"
        # A lost peer is ours to find (distributed/watchdog.py); nccl's own watchdog would abort without a word.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpu else "gloo",
                store=self.store,
                rank=self.rank,
                world_size=self.world,
                timeout=COLLECTIVE_TIMEOUT,
                device_id=device if gpu else None,
            )
        except (RuntimeError, ValueError) as error:
            raise self.to_peer_lost(error, 0) from None

    def all_reduce_max(self, level: int) -> int:
        """The highest level any rank came with, on every rank."""
        if self.world == 1:
            return level
        message = torch.tensor([level])
        dist.all_reduce(message, dist.ReduceOp.MAX)
        return int(message)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def start_all_gather(self, share: Tensor, count: int) -> Callable[[], Tensor]:
        """Begin to gather `count` rows, of which each rank comes with equally many, (k, …), the last ones filled up.

        Returns a function that waits for (count or more, …), the same bits on every rank; a GPU's host doesn't wait.
        """
        if count < self.world:  # the first ranks have a row each; an all-gather would bring one from every rank
            gathered = share.new_empty(count, *share.shape[1:])
            if self.rank < count:
                gathered[self.rank].copy_(share[0])
            works = [dist.broadcast(gathered[source], source, async_op=True) for source in range(count)]
        else:
            gathered = share.new_empty(self.world * len(share), *share.shape[1:])
            works = [ALL_GATHER(gathered, share, async_op=True)]

        def wait() -> Tensor:
            for work in works:
                assert work is not None
                work.wait()
            return gathered

        return wait

    def all_gather_text(self, text: str) -> list[str]:
        """Everybody's text, by rank."""
        if self.world == 1:
            return [text]
        mine = torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(lengths, torch.tensor([len(mine)]))
        longest = max(int(length) for length in lengths)
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(texts, torch.cat([mine, mine.new_zeros(longest - len(mine))]))
        self.connected = True
        return [one[: int(n)].numpy().tobytes().decode() for one, n in zip(texts, lengths, strict=True)]

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """What `make` returns on the leader, on every rank; it must be JSON. A LabError is raised on every rank."""
        if self.world == 1:
            return make()
        failure, message = None, ""
        if self.is_rank0:
            try:
                message = json.dumps({"value": make()})
            except Exception as error:
                failure = error
                code = error.exit_code if isinstance(error, LabError) else 5 if isinstance(error, OSError) else 1
                message = json.dumps({"error": str(error), "code": code})
        answer: dict[str, Any] = json.loads(self.all_gather_text(message)[0])
        if failure is not None:
            raise failure
        if "error" in answer:
            raise error_from_exit_code(answer["code"], answer["error"])
        return answer["value"]

    def rank0_first(self, make: Callable[[], T]) -> T:
        """`make` on every rank, but on the leader before the others: what it wrote is there for them."""
        made: list[T] = []
        self.broadcast_from_rank0(lambda: made.append(make()))
        return made[0] if made else make()

    def broadcast_tensors(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The leader's CPU tensors on every rank; the others come with None."""
        if self.world == 1:
            return dict(tensors or {})
        specs = [(name, list(t.shape), str(t.dtype)) for name, t in (tensors or {}).items()]
        shared: dict[str, Tensor] = {}
        for name, shape, dtype in self.broadcast_from_rank0(lambda: specs):
            empty = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
            shared[name] = tensors[name].contiguous() if tensors is not None else empty
            dist.broadcast(shared[name], 0)
        return shared

    @contextmanager
    def report_once(self) -> Generator[None, None, None]:
        """Around what goes well or wrong on all ranks alike: the leader alone tells."""
        try:
            yield
        except LabError as error:
            error.reported_elsewhere = not self.is_rank0
            raise

    def check_same_on_all_ranks(self, what: str, mine: Mapping[str, Any]) -> None:
        """Check that all ranks come with the same facts. Raises BadInput naming the odd rank and what differs."""
        texts = self.all_gather_text(json.dumps(mine, sort_keys=True))
        usual = Counter(texts).most_common(1)[0][0]
        for rank, text in enumerate(texts):
            if text != usual:
                odd, common = json.loads(text), json.loads(usual)
                keys = [key for key in odd if odd[key] != common.get(key)]
                differing = ", ".join(f"{key}={odd[key]} (others {common.get(key)})" for key in keys[:3])
                raise BadInput(f"rank {rank} has another {what} than the other ranks: {differing}")

    def wrap_ddp(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return a model whose backward pass averages gradients over all ranks. Its buffers are constants."""
        if self.world == 1:
            return model
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, **NO_BUFFERS)

    def exchange_progress(self, mine: int) -> int:
        """Tell the others how far this rank is, and learn how far they are together; from any thread."""
        if self.store is None:
            return 0
        try:
            self.store.set(f"beats/{self.rank}", str(mine))
            keys = [f"beats/{rank}" for rank in range(self.world) if rank != self.rank]
            return sum(int(self.store.get(key)) for key in keys if self.store.check([key]))
        except (RuntimeError, ValueError):
            return 0  # the store went with the rank that held it

    def dead_local_ranks(self) -> list[int]:
        """Neighbours whose process is gone."""
        return [rank for rank, pid in self.neighbours.items() if not is_alive(pid)]

    def peer_lost_error(self, gone: list[int], step: int) -> PeerLost:
        """`rank 1 lost at step 7; …`."""
        who = ("rank " if len(gone) == 1 else "ranks ") + ", ".join(map(str, gone)) if gone else "another rank"
        error = PeerLost(f"{who} lost at step {step}; {self.recovery_hint}")
        error.reported_elsewhere = not self.is_rank0 and 0 not in gone  # the leader tells, if it lives
        return error

    def to_peer_lost(self, error: Exception, step: int) -> Exception:
        """Return a failed collective as PeerLost with the names of the lost ranks, or with what the library said if
        none is known to be lost; any other error as it is.
        """
        if self.world == 1 or not COLLECTIVE.search(str(error)):
            return error
        deadline = time.monotonic() + 2
        while not (gone := self.dead_local_ranks()) and time.monotonic() < deadline:
            time.sleep(0.05)  # a dying process closes its connections before it is gone
        lost = self.peer_lost_error(gone, step)
        connecting = step == 0 and (not self.connected or find_library(str(error)) == "nccl")
        return lost if gone else as_group_error(error, connecting, lost)

    def close(self) -> None:
        """Leave the group when all went well, so that this process can join another."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def ddp_gradient_sync(forward: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Gradients cross ranks only in the backward of the last micro-batch."""
    return nullcontext() if last or not isinstance(forward, DistributedDataParallel) else forward.no_sync()
