"""Several continuations of one text in one sequence: each sees the text and itself, as if the others weren't there.

So the text is computed once. B batch, T time, C channels.
"""

from typing import NamedTuple

from torch import Tensor


class Branches(NamedTuple):
    """Where the tokens of a sequence stand and what they see: those of a text, then of its branches one by one."""

    positions: Tensor
    """(B, T): of a branch they go on from the end of the text."""
    mask: Tensor
    """(B, 1, T, T), whether a token (third) sees another (fourth)."""

    def shift_right(self, x: Tensor, count: int) -> Tensor:
        """(B, T, C) -> (B, T, C), what is `count` positions before each in what it sees, zero where nothing is."""
        there = self.positions[:, None, :] == self.positions[:, :, None] - count  # (B, T, T)
        return (there & self.mask[:, 0]).to(x.dtype) @ x


def build_branches(positions: Tensor, branch: Tensor) -> Branches:
    """(B, T) positions and (B, T) numbers of branches, 0 being the text, -> what sees what.

    A token sees the text and its own branch up to itself; every token sees itself, so no row of the mask is empty.
    """
    seen = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])  # (B, T, T)
    return Branches(positions, seen.tril()[:, None])
