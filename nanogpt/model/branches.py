"""Several continuations of a text, packed into one sequence so that the text is computed only once.

Each continuation attends to the text and to itself, not to the others. B batch, T time, C channels.
"""

from typing import NamedTuple

from torch import Tensor


class Branches(NamedTuple):
    """Positions and attention mask of a sequence that holds a text and then its branches."""

    positions: Tensor
    """(B, T); the positions of each branch continue from the end of the text."""
    mask: Tensor
    """(B, 1, T, T), True where a token (third dimension) attends to another (fourth)."""

    def shift_right(self, x: Tensor, count: int) -> Tensor:
        """Return for each token the input `count` positions earlier on its branch, or zero: (B, T, C) -> (B, T, C)."""
        matches = self.positions[:, None, :] == self.positions[:, :, None] - count  # (B, T, T)
        return (matches & self.mask[:, 0]).to(x.dtype) @ x


def build_branches(positions: Tensor, branch: Tensor) -> Branches:
    """Build the mask from (B, T) positions and (B, T) branch numbers, 0 for the text.

    A token attends to the text and to its own branch up to itself, so no row of the mask is empty.
    """
    seen = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])  # (B, T, T)
    return Branches(positions, seen.tril()[:, None])
