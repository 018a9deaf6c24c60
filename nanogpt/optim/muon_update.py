"""Steps of Muon (Jordan et al. 2024) and NorMuon (Li et al. 2025).

Matrices of one shape are updated as a stack, with one kernel launch for many of them. STACK_BYTES bounds a stack, and
so the memory of a step. Several ranks share the iterations of a stack, and gather the results while they iterate on the
next one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import AdamW

from nanogpt.optim.declaration import FP32, STACK_BYTES, Group, Ranks
from nanogpt.optim.orthogonal import orthogonalize

TINY = 1e-12


class MuonSettings(Protocol):
    """The keys of OptimizerConfig that Muon and NorMuon read."""

    lr: float
    betas: tuple[float, float]
    eps: float
    ns_steps: int
    cautious_decay: bool
    row_beta: float


class Rates(NamedTuple):
    """Rates of one step, taken from a param group."""

    lr: float
    decay: float
    momentum: float


@dataclass
class Piece:
    """A matrix: a parameter or some of its rows. Its tensors are views."""

    weight: Tensor
    """(rows, cols), fp32."""
    grad: Tensor
    momentum: Tensor
    row_second: Tensor | None
    """(rows, 1), of NorMuon: running mean square of each row of the update."""

    @property
    def tall(self) -> bool:
        """Has more rows than columns, and is transposed for the iteration."""
        return self.weight.shape[0] > self.weight.shape[1]


@dataclass
class Stack:
    """Matrices of one shape or its transpose with equal rates, the tall ones first, which are updated together."""

    pieces: list[Piece]
    rates: Rates

    def split_by_shape(self) -> list[list[Piece]]:
        """Return the tall pieces and the others, without empty lists."""
        split = [[piece for piece in self.pieces if piece.tall == tall] for tall in (True, False)]
        return [pieces for pieces in split if pieces]


class Muon(AdamW):
    """Muon for the groups with `split_rows`, AdamW for the others. A step consumes the gradients of the former."""

    def __init__(self, groups: list[Group], settings: MuonSettings, ranks: Ranks | None, fused: bool) -> None:
        super().__init__(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)
        self.settings = settings
        self.ranks = ranks if ranks and ranks.world > 1 else None
        self._step_supports_amp_scaling = False  # else GradScaler expects AdamW's kernel to skip the step

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have gradients. A collective on several ranks."""
        assert closure is None
        gathering: list[tuple[Stack, Callable[[], Tensor]]] = []
        for stack in self.build_stacks():
            gathering.append((stack, self.start_stack(stack)))
            if len(gathering) > (self.ranks is not None):  # a single rank has nothing to wait for
                self.finish_stack(*gathering.pop(0))
        result = super().step()
        for waiting in gathering:
            self.finish_stack(*waiting)
        return result

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the initial state of a parameter with hidden matrices."""
        return {"momentum": torch.zeros_like(parameter)}

    def build_stacks(self) -> Iterator[Stack]:
        """Yield stacks of all matrices that have gradients, in the same order on every rank."""
        alike: defaultdict[tuple[tuple[int, ...], Rates], list[Piece]] = defaultdict(list)
        for group in self.param_groups:
            rates = Rates(group["lr"], group["weight_decay"], group["muon_momentum"])
            for parameter in group["params"] if group["split_rows"] else []:
                if parameter.grad is not None:
                    for piece in self.split_parameter(parameter, group["split_rows"]):
                        alike[tuple(sorted(piece.weight.shape)), rates].append(piece)
                    parameter.grad = None  # AdamW skips it
        for (shape, rates), pieces in alike.items():
            pieces.sort(key=lambda piece: not piece.tall)
            most = self.largest_stack(shape)
            yield from (Stack(pieces[i : i + most], rates) for i in range(0, len(pieces), most))

    def largest_stack(self, shape: tuple[int, ...]) -> int:
        """Return how many matrices of a shape are in a stack, if possible a multiple of the number of ranks."""
        most, world = max(1, STACK_BYTES // (FP32 * prod(shape))), self.ranks.world if self.ranks else 1
        return most - most % world or most

    def split_parameter(self, parameter: Tensor, rows: tuple[int, ...]) -> Iterator[Piece]:
        """Yield the matrices of a parameter."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state |= self.initial_state(parameter)
        assert parameter.grad is not None
        grad, momentum, second = parameter.grad, state["momentum"], state.get("row_second")
        if len(rows) == 1:
            yield Piece(parameter, grad, momentum, second)
        else:
            seconds = [None] * len(rows) if second is None else second.split(rows)
            parts = zip(parameter.split(rows), grad.split(rows), momentum.split(rows), seconds, strict=True)
            yield from (Piece(*part) for part in parts)

    def start_stack(self, stack: Stack) -> Callable[[], Tensor]:
        """Update the momenta and start to orthogonalise them; each of several ranks does its share.

        Returns a function that waits for the result, (n, rows, cols) with rows <= cols.
        """
        for pieces in stack.split_by_shape():
            self.update_momenta(pieces, stack.rates)
        if self.ranks is None:
            update = orthogonalize(look_ahead(stack), self.settings.ns_steps)
            return lambda: update
        each = -(-len(stack.pieces) // self.ranks.world)
        own = stack.pieces[self.ranks.rank * each : (self.ranks.rank + 1) * each]
        filled = stack.pieces[0].weight.new_zeros(each, *sorted(stack.pieces[0].weight.shape))
        if own:
            filled[: len(own)] = look_ahead(Stack(own, stack.rates))
        share = orthogonalize(filled, self.settings.ns_steps)
        return self.ranks.start_all_gather(share, len(stack.pieces))

    def update_momenta(self, pieces: list[Piece], rates: Rates) -> None:
        """Update the momenta of pieces of one shape."""
        momenta = [piece.momentum for piece in pieces]
        old = torch.stack(momenta)
        grads = self.keep_if_nonfinite(torch.stack([piece.grad for piece in pieces]), old)
        copy_all(momenta, old.lerp_(grads, 1 - rates.momentum).unbind())

    def finish_stack(self, stack: Stack, wait: Callable[[], Tensor]) -> None:
        """Wait for the result of `start_stack` and update the weights."""
        updates, done = wait(), 0
        for pieces in stack.split_by_shape():
            update = updates[done : done + len(pieces)].float()
            done += len(pieces)
            self.update_weights(pieces, update.mT if pieces[0].tall else update, stack.rates)

    def update_weights(self, pieces: list[Piece], update: Tensor, rates: Rates) -> None:
        """Decay the weights and subtract the update, (n, rows, cols), scaled so that all outputs change about equally.

        Overwrites `update`.
        """
        update = self.scale_rows(pieces, update)
        if update.shape[1] > update.shape[2]:
            update.mul_((update.shape[1] / update.shape[2]) ** 0.5)
        weights = [piece.weight for piece in pieces]
        old = torch.stack(weights)
        shrink = rates.lr * rates.decay
        new = old.sub(self.weights_to_decay(old, update), alpha=shrink) if rates.decay else old.clone()
        new.sub_(update, alpha=rates.lr)
        copy_all(weights, self.keep_if_nonfinite(new, old).unbind())

    def weights_to_decay(self, weights: Tensor, update: Tensor) -> Tensor:
        """Return the weights; with cautious decay, zero for those that the update makes larger."""
        return weights * (weights * update >= 0) if self.settings.cautious_decay else weights

    def keep_if_nonfinite(self, new: Tensor, old: Tensor) -> Tensor:
        """Return `old` if `found_inf` is set, else `new`, without a host sync, as torch's fused AdamW does."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        return new if found_inf is None else torch.where(found_inf > 0, old, new)

    def scale_rows(self, pieces: list[Piece], update: Tensor) -> Tensor:
        """Return the update, (n, rows, cols). NorMuon scales its rows in place."""
        return update


class NorMuon(Muon):
    """Muon with row-wise normalized updates."""

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the momentum, and each row's running mean square."""
        return super().initial_state(parameter) | {"row_second": parameter.new_zeros(len(parameter), 1)}

    def scale_rows(self, pieces: list[Piece], update: Tensor) -> Tensor:
        """Divide each row by the root of its running mean square, in place, and keep the norm of each matrix."""
        seconds = [piece.row_second for piece in pieces if piece.row_second is not None]
        old = torch.stack(seconds)
        running = old.lerp(update.square().mean(2, keepdim=True), 1 - self.settings.row_beta)
        copy_all(seconds, self.keep_if_nonfinite(running, old).unbind())
        norm = torch.linalg.matrix_norm(update, keepdim=True)
        update.div_(running.sqrt().clamp(min=TINY))
        return update.mul_(norm / torch.linalg.matrix_norm(update, keepdim=True).clamp(min=TINY))


def look_ahead(stack: Stack) -> Tensor:
    """Return Nesterov's momenta, (n, rows, cols) with rows <= cols."""
    ahead: list[Tensor] = []
    for pieces in stack.split_by_shape():
        grads = torch.stack([piece.grad for piece in pieces])
        update = grads.lerp_(torch.stack([piece.momentum for piece in pieces]), stack.rates.momentum)
        ahead.append(update.mT if pieces[0].tall else update)
    return torch.cat(ahead)


def copy_all(targets: list[Tensor], sources: tuple[Tensor, ...]) -> None:
    """Copy each source to its target, in one launch on a GPU."""
    torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
