"""The steps of Muon (Jordan et al. 2024), which moves a hidden matrix by its orthogonalised momentum, and of NorMuon
(Li et al. 2025).
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import AdamW

from nanogpt.optim.declaration import Group, Ranks
from nanogpt.optim.orthogonal import orthogonalized

TINY = 1e-12


class Settings(Protocol):
    """The keys of OptimizerConfig that Muon and NorMuon read."""

    lr: float
    betas: tuple[float, float]
    eps: float
    orthogonal_steps: int
    cautious_decay: bool
    row_beta: float


@dataclass
class Piece:
    """One matrix: all of a parameter, or some rows of it."""

    weight: Tensor
    """(rows, cols), a view of the parameter."""
    update: Tensor
    """(rows, cols): the momentum, looked ahead."""
    row_second: Tensor | None
    """(rows, 1), NorMuon's: running mean of the squares of the update's rows."""
    group: Group

    @property
    def tall(self) -> bool:
        """Whether it is transposed for the iteration, which takes no more rows than columns."""
        return self.weight.shape[0] > self.weight.shape[1]


class Muon(AdamW):
    """The groups with `rows` by Muon, all others by AdamW. The gradients of the former are used up."""

    def __init__(self, groups: list[Group], settings: Settings, ranks: Ranks | None, fused: bool) -> None:
        super().__init__(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)
        self.settings, self.ranks = settings, ranks
        self._step_supports_amp_scaling = False  # else GradScaler leaves it to AdamW's kernel to skip a step

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of all parameters that have gradients; on several ranks together."""
        assert closure is None
        stacks: defaultdict[tuple[int, ...], list[Piece]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"] if group["rows"] else []:
                if parameter.grad is not None:
                    for piece in self.pieces(parameter, group):
                        stacks[tuple(sorted(piece.weight.shape))].append(piece)
                    parameter.grad = None  # AdamW passes over it
        for pieces in stacks.values():
            pieces.sort(key=lambda piece: not piece.tall)
            update = self.orthogonalized(torch.stack([p.update.mT if p.tall else p.update for p in pieces]))
            tall = sum(piece.tall for piece in pieces)
            self.apply(pieces[:tall], update[:tall].mT)
            self.apply(pieces[tall:], update[tall:])
        return super().step()

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return what is kept of a parameter that holds hidden matrices, before its first step."""
        return {"momentum": torch.zeros_like(parameter)}

    def pieces(self, parameter: Tensor, group: Group) -> list[Piece]:
        """A parameter's matrices, its momentum brought up to date (Nesterov's form)."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state |= self.initial_state(parameter)
        assert parameter.grad is not None
        grad = self.unless_broken(parameter.grad, state["momentum"])  # which then stays
        momentum = state["momentum"].lerp_(grad, 1 - group["muon_momentum"])
        update, rows = torch.lerp(grad, momentum, group["muon_momentum"]), group["rows"]
        seconds = state["row_second"].split(rows) if "row_second" in state else [None] * len(rows)
        cut = zip(parameter.detach().split(rows), update.split(rows), seconds, strict=True)
        return [Piece(*one, group) for one in cut]

    def orthogonalized(self, stack: Tensor) -> Tensor:
        """(n, rows, cols) -> the same in fp32; on several ranks each does its share of the n."""
        steps, n = self.settings.orthogonal_steps, len(stack)
        if self.ranks is None or self.ranks.world == 1:
            return orthogonalized(stack, steps).float()
        each = -(-n // self.ranks.world)
        share = stack.new_zeros(each, *stack.shape[1:])
        mine = stack[self.ranks.rank * each : (self.ranks.rank + 1) * each]
        share[: len(mine)] = mine
        return self.ranks.concatenate(orthogonalized(share, steps))[:n].float()

    def apply(self, pieces: list[Piece], update: Tensor) -> None:
        """Decay the weights and move them along (n, rows, cols), so far that each output changes about as much."""
        if not pieces:
            return
        update = self.scale_rows(pieces, update)
        update = update * max(1.0, update.shape[1] / update.shape[2]) ** 0.5
        update, nothing = self.unless_broken(update, torch.zeros_like(update)), torch.zeros_like(update[0])
        for piece, direction in zip(pieces, update, strict=True):
            lr, decay = piece.group["lr"], piece.group["weight_decay"]
            if decay:
                kept = piece.weight * (piece.weight * direction >= 0) if self.settings.cautious_decay else piece.weight
                piece.weight.sub_(self.unless_broken(kept, nothing), alpha=lr * decay)
            piece.weight.sub_(direction, alpha=lr)

    def unless_broken(self, new: Tensor, old: Tensor) -> Tensor:
        """`new`, but where the step's numbers aren't finite `old`. The device knows, and the host doesn't wait for it:
        torch's fused AdamW heeds the same attribute.
        """
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        return new if found_inf is None else torch.where(found_inf > 0, old, new)

    def scale_rows(self, pieces: list[Piece], update: Tensor) -> Tensor:
        """Return (n, rows, cols) as it is; NorMuon changes the sizes of its rows."""
        return update


class NorMuon(Muon):
    """Muon whose rows take steps of like size."""

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the momentum, and of each row the running mean of the squares of its updates."""
        return super().initial_state(parameter) | {"row_second": parameter.new_zeros(len(parameter), 1)}

    def scale_rows(self, pieces: list[Piece], update: Tensor) -> Tensor:
        """Divide each row by the root of its running mean square; the norm of each of the n matrices stays."""
        seconds = [piece.row_second for piece in pieces if piece.row_second is not None]
        running = torch.stack(seconds).lerp_(update.square().mean(2, keepdim=True), 1 - self.settings.row_beta)
        for second, now in zip(seconds, running, strict=True):
            second.copy_(self.unless_broken(now, second))
        even = update / running.sqrt().clamp(min=TINY)
        norms = [torch.linalg.matrix_norm(one, keepdim=True) for one in (update, even)]
        return even * (norms[0] / norms[1].clamp(min=TINY))
