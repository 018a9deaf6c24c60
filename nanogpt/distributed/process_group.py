"""Process group and collectives. There is one process per device; rank 0 does the I/O.

Gradients and losses are summed by NCCL on GPUs and gloo on CPUs. Stop requests, errors and configs are small JSON
messages over gloo, never pickles. With one rank every collective is the identity.
"""
# pyright: reportPrivateImportUsage=false
# torch.distributed does not declare its stores as exported

import gc
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
# called all_gather_into_tensor before torch 2.13, which deprecates that name
ALL_GATHER: Callable[..., Any] = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor")  # noqa: B009
# DistributedDataParallel's argument, called broadcast_buffers before torch 2.13, which deprecates that name
SYNC_BUFFERS = {"forward_sync_buffers", "broadcast_buffers"} & signature(DistributedDataParallel).parameters.keys()
NO_BUFFERS: dict[str, Any] = {max(SYNC_BUFFERS): False}
COLLECTIVE_TIMEOUT = timedelta(days=7)  # never reached: distributed/watchdog.py gives up on a rank much earlier


class ProcessGroup:
    """The process group of a run, as one rank sees it."""

    def __init__(
        self, rank_env: RankEnv = SINGLE_RANK, store: dist.Store | None = None, local_pids: dict[int, int] | None = None
    ) -> None:
        self.rank, self.world, self.store = rank_env.rank, rank_env.world, store
        self.is_rank0 = rank_env.rank == 0
        self.recovery_hint = "the same command continues from the last checkpoint"
        """Ends the error message for a lost rank."""
        self.connected = False
        """True after the first message between ranks."""
        self.local_pids = local_pids or {}
        """Process ids of the ranks on this machine and in this container, which can be checked directly."""

    def join(self, device: torch.device) -> None:
        """Initialise torch.distributed. Before this no collective works. Raises PeerLost."""
        if self.world == 1:
            return
        gpu = device.type == "cuda"
        # distributed/watchdog.py finds lost peers; NCCL's own watchdog would abort without a message.
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
        """Return the maximum over all ranks."""
        if self.world == 1:
            return level
        message = torch.tensor([level])
        dist.all_reduce(message, dist.ReduceOp.MAX)
        return int(message)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks in place, and return it."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def start_all_gather(self, share: Tensor, count: int) -> Callable[[], Tensor]:
        """Start an all-gather of `count` rows. Every rank passes k of them, (k, …); the last ranks pad theirs.

        Returns a function that waits for the rows, (count or more, …), with equal bits on every rank. On a GPU only the
        stream waits, not the host.
        """
        if count < self.world:  # only the first ranks have a row, and an all-gather would fetch one from every rank
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
        """Return the text of every rank, by rank."""
        if self.world == 1:
            return [text]
        mine = torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(lengths, torch.tensor([len(mine)]))
        longest = max(int(length) for length in lengths)
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(texts, torch.cat([mine, mine.new_zeros(longest - len(mine))]))
        self.connected = True
        return [gathered[: int(n)].numpy().tobytes().decode() for gathered, n in zip(texts, lengths, strict=True)]

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and return its JSON value on every rank. If it raises a LabError, every rank does."""
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
        """Call `make` on rank 0, then on the other ranks, which find what rank 0 has written."""
        made: list[T] = []
        self.broadcast_from_rank0(lambda: made.append(make()))
        return made[0] if made else make()

    def broadcast_tensors(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Return rank 0's CPU tensors on every rank; the others pass None."""
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
        """Mark errors raised inside, which occur on every rank, so that only rank 0 prints them."""
        try:
            yield
        except LabError as error:
            error.reported_elsewhere = not self.is_rank0
            raise

    def check_same_on_all_ranks(self, what: str, mine: Mapping[str, Any]) -> None:
        """Raise BadInput unless `mine` is equal on all ranks, naming the rank and the keys that differ."""
        texts = self.all_gather_text(json.dumps(mine, sort_keys=True))
        usual = Counter(texts).most_common(1)[0][0]
        for rank, text in enumerate(texts):
            if text != usual:
                odd, common = json.loads(text), json.loads(usual)
                keys = [key for key in odd if odd[key] != common.get(key)]
                differing = ", ".join(f"{key}={odd[key]} (others {common.get(key)})" for key in keys[:3])
                raise BadInput(f"rank {rank} has another {what} than the other ranks: {differing}")

    def wrap_ddp(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap the model in DistributedDataParallel, which averages gradients over ranks. Buffers must be constant."""
        if self.world == 1:
            return model
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, **NO_BUFFERS)

    def exchange_progress(self, mine: int) -> int:
        """Publish this rank's progress counter and return the sum of the others'. May be called from any thread."""
        if self.store is None:
            return 0
        try:
            self.store.set(f"beats/{self.rank}", str(mine))
            keys = [f"beats/{rank}" for rank in range(self.world) if rank != self.rank]
            return sum(int(self.store.get(key)) for key in keys if self.store.check([key]))
        except (RuntimeError, ValueError):
            return 0  # the store went with the rank that held it

    def dead_local_ranks(self) -> list[int]:
        """Return the ranks of this machine whose process has ended."""
        return [rank for rank, pid in self.local_pids.items() if not is_alive(pid)]

    def peer_lost_error(self, gone: list[int], step: int) -> PeerLost:
        """Return the error that names the lost ranks: `rank 1 lost at step 7; …`."""
        who = ("rank " if len(gone) == 1 else "ranks ") + ", ".join(map(str, gone)) if gone else "another rank"
        error = PeerLost(f"{who} lost at step {step}; {self.recovery_hint}")
        error.reported_elsewhere = not self.is_rank0 and 0 not in gone  # rank 0 prints it, if it still runs
        return error

    def to_peer_lost(self, error: Exception, step: int) -> Exception:
        """Return the error of a failed collective: PeerLost naming the lost ranks, or quoting the library if unknown.

        Any other error is returned unchanged.
        """
        if self.world == 1 or not COLLECTIVE.search(str(error)):
            return error
        deadline = time.monotonic() + 2
        while not (gone := self.dead_local_ranks()) and time.monotonic() < deadline:
            time.sleep(0.05)  # a process that ends closes its connections first
        lost = self.peer_lost_error(gone, step)
        connecting = step == 0 and (not self.connected or find_library(str(error)) == "nccl")
        return lost if gone else as_group_error(error, connecting, lost)

    def close(self) -> None:
        """Leave the group, so that this process can join another. Called only if there was no error.

        Nothing may refer to a model from `wrap_ddp` any more. Else its reducer holds the last reference to torch's
        group, whose destructor joins a thread that may wait for the GIL, which this thread has (torch 2.13, gloo).
        """
        if self.world > 1 and dist.is_initialized():
            gc.collect()  # reference cycles of models
            dist.destroy_process_group()


def ddp_gradient_sync(forward: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Return the context of one micro-batch: only the last one's backward pass reduces gradients over ranks."""
    return nullcontext() if last or not isinstance(forward, DistributedDataParallel) else forward.no_sync()
