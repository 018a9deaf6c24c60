"""DistributedDataParallel around a model: what crosses ranks, and in which parts."""
# pyright: reportPrivateImportUsage=false

from collections.abc import Generator
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nanogpt.config import ModelConfig
from nanogpt.distributed.env import RankEnv
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.model.gpt import GPT
from nanogpt.model.loss import compile_loss

LAYERS = 4


@pytest.fixture
def group() -> Generator[ProcessGroup, None, None]:
    """One of two ranks, in a process group that has no other."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield ProcessGroup(RankEnv(0, 2, 0, 2))
    dist.destroy_process_group()


def wrap(group: ProcessGroup, model: nn.Module) -> DistributedDataParallel:
    wrapped = group.wrap_ddp(model, torch.device("cpu"))
    assert isinstance(wrapped, DistributedDataParallel)
    return wrapped


def small() -> GPT:
    return GPT(
        ModelConfig(n_layer=LAYERS, n_head=2, n_embd=160, block_size=16, vocab_size=97, vocab_multiple=64), seed=1
    )


def test_the_mask_of_padded_ids_does_not_cross_ranks(group: ProcessGroup) -> None:
    """It is a constant; by default all buffers are broadcast at the first forward pass of every step."""
    model = small()
    assert model.pad_mask is not None
    assert not wrap(group, model).will_sync_module_buffers()


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
def test_a_compiled_model_is_split_where_buckets_end(group: ProcessGroup, dropout: float) -> None:
    """One graph for each bucket, so that it crosses ranks while the backward pass goes on; the same gradients."""
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(len(list(graph.graph.nodes)))
        return graph

    torch.compiler.reset()
    model, alone = small(), small()
    model.config = alone.config = model.config.model_copy(update={"dropout": dropout})
    with patch.object(torch, "compile", partial(torch.compile, backend="eager")):  # of the loss: 20 s without
        model.compiled_loss = compile_loss()
    wrapped = wrap(group, torch.compile(model, backend=count, dynamic=False))  # type: ignore[arg-type]
    wrapped.bucket_bytes_cap = 2**20  # less than a layer; the default would hold all of this small model
    ids, keys = torch.arange(32).reshape(2, 16), torch.arange(2) if dropout else None
    wrapped(ids, ids, keys=keys).backward()
    alone(ids, ids, keys=keys).backward()
    assert len(graphs) >= LAYERS
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert torch.allclose(p.grad, q.grad, atol=1e-5), name
