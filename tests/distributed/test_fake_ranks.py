"""One rank of 8 or 64 with sharded weights: torch's fake process group, whose collectives send nothing.

What arrives is not what other ranks would send, so nothing here looks at curves: tests/training/test_fsdp.py does,
with real ranks.
"""

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanogpt.config import TrainConfig
from nanogpt.data.batches import Batch
from nanogpt.device import Compute
from nanogpt.distributed.env import RankEnv
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.model.fsdp import gather_full_tensor
from nanogpt.training.state import TrainState, build_state
from nanogpt.training.step import train_step

Build = Callable[..., TrainConfig]
LAYERS, ACCUM = 3, 4
CPU = torch.device("cpu")


class Traffic(TorchDispatchMode):
    """Counts collectives by name and type; fails where a number goes from a tensor to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, torch.dtype]] = Counter()
        self.elements: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number was asked for"
        if func.namespace == "c10d" and "barrier" not in str(func):
            tensor = next(one for one in tree_leaves(args) if isinstance(one, torch.Tensor))
            name = str(func).split(".")[1].strip("_")
            self.seen[name, tensor.dtype] += 1
            self.elements[name, tensor.dtype] += tensor.numel()
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_ranks(world: int) -> Generator[ProcessGroup, None, None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield ProcessGroup(RankEnv(0, world, 0, 8))
    finally:
        dist.destroy_process_group()


def start(config: Build, group: ProcessGroup, precision: str, **changes: Any) -> tuple[TrainConfig, TrainState]:
    """A rank whose steps have 4 micro-batches of one sequence, and whose numbers are read late."""
    sequences = ACCUM * group.world
    shape = {"model.n_layer": LAYERS, "model.n_embd": 64, "training.batch_tokens": 16 * sequences}
    fixed = {"hardware.strategy": "fsdp", "hardware.micro_batch_size": 1, "hardware.precision": precision}
    built = config(**shape, **fixed, **changes)
    compute = Compute(CPU, precision, "")  # type: ignore[arg-type]
    state = build_state(built, built.model.with_vocab(97), compute, group)
    return built, state


def step(config: TrainConfig, state: TrainState) -> Any:
    ids = torch.arange(16)[None] % 97
    keys = torch.arange(1) if config.model.dropout else None
    return train_step(state, [Batch(ids, ids, keys)] * ACCUM, config)


@pytest.fixture(autouse=True)
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanogpt.training.state.defers_metrics", MagicMock(return_value=True))


@pytest.mark.parametrize("world", [8, 64])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("each", [True, False], ids=["each", "last"])
def test_what_crosses_ranks_in_a_step(config: Build, world: int, precision: str, each: bool) -> None:
    """Blocks are gathered twice for a micro-batch, in the precision of products, all else once, in fp32; gradients are
    reduced in fp32, in every micro-batch or once. No number is asked for.
    """
    with fake_ranks(world) as group:
        built, state = start(config, group, precision, **{"optimizer.grad_clip": 1.0})
        state.reduce_every_micro_batch = each
        step(built, state)
        with Traffic() as traffic:
            step(built, state)
    products = torch.bfloat16 if precision == "bf16" else torch.float32
    gathers, reductions = Counter(), LAYERS + 1
    gathers[products] += 2 * LAYERS * ACCUM
    gathers[torch.float32] += ACCUM
    found = {name: count for name, count in traffic.seen.items() if name[0] != "allreduce"}
    expected: dict[tuple[str, torch.dtype], int] = {("allgather_base", kind): n for kind, n in gathers.items()}
    expected["reduce_scatter_base", torch.float32] = reductions * (ACCUM if each else 1)
    assert found == expected


@pytest.mark.parametrize("world", [8, 64])
@pytest.mark.parametrize("changes", [{}, {"hardware.activation_checkpointing": True}], ids=["plain", "recomputed"])
def test_a_step_that_is_not_finite_changes_no_part(config: Build, world: int, changes: dict[str, Any]) -> None:
    with fake_ranks(world) as group:
        built, state = start(config, group, "bf16", **changes)
        state.reduce_every_micro_batch = False
        for broken in (False, True, False):
            assert state.found_nonfinite is not None
            state.found_nonfinite.fill_(float(broken))
            before = [tensor.clone() for part in state.tensors().values() for tensor in part.values()]
            unread = step(built, state)
            after = [tensor for part in state.tensors().values() for tensor in part.values()]
            same = [bool(gather_full_tensor(a == b).all()) for a, b in zip(before, after, strict=False) if b.dim()]
            assert all(same) if broken else not all(same)
            assert unread.wait().loss > 0


def test_whole_tensors_have_the_shapes_of_one_rank(config: Build) -> None:
    with fake_ranks(8) as group:
        built, state = start(config, group, "bf16")
        step(built, state)
        found = {(part, key): (tuple(value.shape), value.dtype) for part, key, value in state.gather_tensors()}
    alone = config(**{"model.n_layer": LAYERS, "model.n_embd": 64})
    one = build_state(alone, built.model.with_vocab(97), Compute(CPU, "fp32", ""))
    step(alone, one)
    assert found == {(part, key): (tuple(value.shape), value.dtype) for part, key, value in one.gather_tensors()}
