"""Muon's stacks: bounded memory, few launches, and the numbers of the whole formula to the last bit."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from nanogpt.config import ModelConfig, OptimizerConfig
from nanogpt.estimates.memory import hidden_matrices
from nanogpt.model.gpt import GPT
from nanogpt.optim import muon_update
from nanogpt.optim.build import build_optimizer
from nanogpt.optim.groups import parameter_kind
from nanogpt.optim.muon import MUON
from nanogpt.optim.orthogonal import orthogonalize
from tests.optim.allocations import Allocations

SIZES = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2_medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2_xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}
SMALL = {"n_layer": 3, "n_head": 4, "n_embd": 20, "block_size": 8, "vocab_size": 9}
SHAPES = [{}, {"activation": "swiglu", "n_kv_head": 2, "norm": "rmsnorm", "bias": False, "tie_weights": False}]


class Matrices:
    """The hidden matrices of a model, without values."""

    def __init__(self, model: GPT) -> None:
        self.config = model.config
        named = model.to("meta").named_parameters()
        self.named = [(name, parameter) for name, parameter in named if parameter_kind(name) == "matrix"]

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return iter(self.named)


def count_step(shape: dict[str, Any], rule: str, ranks: Any = None) -> Allocations:
    """Count calls and memory of the second step of a model of this size, its numbers read late as on a GPU."""
    config = ModelConfig.model_validate({"vocab_size": 50257, "block_size": 1024} | shape)
    model = Matrices(GPT(config, seed=None))
    optimizer = build_optimizer(
        model, OptimizerConfig.model_validate({"name": rule, "cautious_decay": True}), "meta", ranks
    )
    optimizer.found_inf = torch.zeros((), device="meta")  # type: ignore[attr-defined]
    with patch.object(torch.optim.AdamW, "step"):  # which does not know meta tensors
        for counted in (Allocations(), Allocations()):
            for _, parameter in model.named:
                parameter.grad = torch.zeros_like(parameter)
            with counted:
                optimizer.step()
    return counted


class Silent:
    """The first of several ranks; the others say nothing."""

    def __init__(self, world: int) -> None:
        self.rank, self.world = 0, world

    def start_all_gather(self, share: Tensor, count: int) -> Callable[[], Tensor]:
        gathered = share.new_empty(max(count, self.world * len(share) if count >= self.world else 0), *share.shape[1:])
        return lambda: gathered


@pytest.mark.parametrize("rule", ["muon", "normuon"])
@pytest.mark.parametrize(
    ("size", "world"),
    [("gpt2", 1), *(pytest.param("gpt2_xl", n, marks=pytest.mark.slow) for n in (1, 8, 64))],
)
def test_a_step_takes_two_gigabytes_at_most(size: str, world: int, rule: str) -> None:
    """And about what is declared. With every matrix of a shape in one stack it was 14.75 GB for gpt2_xl on a GPU."""
    declared = MUON.temporary_bytes(hidden_matrices(ModelConfig.model_validate(SIZES[size])))
    found = count_step(SIZES[size], rule, Silent(world) if world > 1 else None).peak
    assert 0.8 * declared < found < 1.05 * declared < 2e9


@pytest.mark.parametrize("rule", ["muon", "normuon"])
def test_calls_do_not_grow_with_the_layers(rule: str) -> None:
    """Up to what a stack holds nothing is launched more often; beyond, each of 18 stacks takes 75 launches at most."""
    counts = {n: count_step({"n_layer": n, "n_head": 2, "n_embd": 64}, rule) for n in (2, 40)}
    launches = {n: sum(counted.calls.values()) for n, counted in counts.items()}
    assert launches[2] == launches[40] < 175
    assert counts[40].views - counts[2].views == 38 * (3 if rule == "muon" else 4)  # queries, keys and values
    assert sum(count_step(SIZES["gpt2_xl"], rule).calls.values()) < 18 * 75


def whole_step(model: GPT, state: dict[str, dict[str, Tensor]], config: OptimizerConfig) -> None:
    """Move the hidden matrices of a model by the formula on all matrices of a shape at once, one after the other."""
    stacks: dict[tuple[int, ...], list[tuple[Tensor, Tensor, Tensor]]] = {}
    for name, p in model.named_parameters():
        if parameter_kind(name) == "matrix":
            of = state.setdefault(name, {"momentum": torch.zeros_like(p), "row_second": p.new_zeros(len(p), 1)})
            assert p.grad is not None
            update = torch.lerp(p.grad, of["momentum"].lerp_(p.grad, 1 - config.momentum), config.momentum)
            rows = [len(p)]
            if "c_attn" in name:
                rows = list(model.config.qkv_widths)
            elif "c_fc" in name and model.config.is_gated:
                rows = [len(p) // 2] * 2
            for piece in zip(*(t.split(rows) for t in (p.detach(), update, of["row_second"])), strict=True):
                stacks.setdefault(tuple(sorted(piece[0].shape)), []).append(piece)
    for pieces in stacks.values():
        pieces.sort(key=lambda piece: piece[0].shape[0] <= piece[0].shape[1])
        tall = [piece[0].shape[0] > piece[0].shape[1] for piece in pieces]
        found = orthogonalize(
            torch.stack([u.mT if t else u for (_, u, _), t in zip(pieces, tall, strict=True)]), config.ns_steps
        )
        for (weight, _, second), u in zip(
            pieces, [o.mT if t else o for o, t in zip(found, tall, strict=True)], strict=True
        ):
            if config.name == "normuon":
                second.lerp_(u.square().mean(1, keepdim=True), 1 - config.row_beta)
                even = u / second.sqrt().clamp(min=1e-12)
                u = even * (torch.linalg.matrix_norm(u) / torch.linalg.matrix_norm(even).clamp(min=1e-12))
            u = u * max(1.0, u.shape[0] / u.shape[1]) ** 0.5
            decayed = weight * (weight * u >= 0) if config.cautious_decay else weight
            weight.sub_(decayed, alpha=config.lr * config.weight_decay).sub_(u, alpha=config.lr)


@pytest.mark.parametrize("rule", ["muon", "normuon"])
@pytest.mark.parametrize("shape", SHAPES, ids=["gpt2", "modern"])
@pytest.mark.parametrize("limit", [1, 4000, 2**30], ids=["single", "some", "whole"])
def test_slices_are_the_whole_to_a_bit(
    shape: dict[str, Any], rule: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon_update, "STACK_BYTES", limit)
    values = {"name": rule, "lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, "cautious_decay": rule == "normuon"}
    config = OptimizerConfig.model_validate(values)
    ours, theirs = (GPT(ModelConfig.model_validate(SMALL | shape), seed=1) for _ in range(2))
    optimizer, state = build_optimizer(ours, config, "cpu"), dict[str, dict[str, Tensor]]()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        optimizer.step()
        with torch.no_grad():
            whole_step(theirs, state, config)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if parameter_kind(name) == "matrix":
            assert torch.equal(p, q), name
            assert all(torch.equal(value, state[name][key]) for key, value in optimizer.state[p].items()), name


class Crowd:
    """Ranks that are threads of one process."""

    def __init__(self, world: int) -> None:
        self.world, self.barrier = (
            world,
            threading.Barrier(world, timeout=600),
        )  # a rank that fails is missed by the others
        self.shares: defaultdict[int, dict[int, Tensor]] = defaultdict(dict)

    def run(self, work: Callable[["Member"], None]) -> list["Member"]:
        members = [Member(self, rank) for rank in range(self.world)]
        with ThreadPoolExecutor(self.world) as pool:
            list(pool.map(work, members))
        return members


class Member:
    """One of them, which notes what it does."""

    def __init__(self, crowd: Crowd, rank: int) -> None:
        self.crowd, self.rank, self.world = crowd, rank, crowd.world
        self.events: list[tuple[str, int]] = []

    def start_all_gather(self, share: Tensor, count: int) -> Callable[[], Tensor]:
        assert len(share) == -(-count // self.world)
        number = sum(name == "start" for name, _ in self.events)
        self.events.append(("start", len(share)))
        self.crowd.shares[number][self.rank] = share

        def wait() -> Tensor:
            self.events.append(("wait", number))
            self.crowd.barrier.wait()
            return torch.cat([self.crowd.shares[number][rank] for rank in range(self.world)])

        return wait


@pytest.mark.parametrize("rule", ["muon", "normuon"])
@pytest.mark.parametrize(("world", "limit"), [(2, 4000), (3, 4000), (3, 1), (8, 2**30)])
def test_ranks_share_the_iterations(rule: str, world: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank gets the weights and state that one rank alone gets, to the bit; each iterates on its share, and the
    results of a stack are on their way while it iterates on the next one.
    """
    monkeypatch.setattr(muon_update, "STACK_BYTES", limit)
    config = OptimizerConfig.model_validate({"name": rule, "lr": 0.02, "weight_decay": 0.1})
    found: dict[int, list[Tensor]] = {}

    def train(member: Member | None) -> None:
        model = GPT(ModelConfig.model_validate(SMALL), seed=1)
        optimizer = build_optimizer(model, config, "cpu", member)
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        state = [value for p in model.parameters() for value in optimizer.state[p].values()]
        found[member.rank if member else -1] = [p.detach() for p in model.parameters()] + state

    train(None)
    members = Crowd(world).run(train)
    for rank in range(world):
        assert all(torch.equal(a, b) for a, b in zip(found[rank], found[-1], strict=True))
    events = members[0].events
    names = [name for name, _ in events[: len(events) // 2]]  # of one step
    stacks = names.count("start")
    assert names == ["start", *["start", "wait"] * (stacks - 1), "wait"] and stacks >= 2
    shares = [size for name, size in events if name == "start"]
    assert max(shares) == {1: 1, 4000: 1, 2**30: 2}[limit]
