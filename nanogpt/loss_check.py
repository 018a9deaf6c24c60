"""Check the final validation loss of a run for divergence and overfitting."""

import math
from typing import NamedTuple

MARGIN, SLACK = 1.05, 0.1  # a model just initialised is a little above chance


class LossProblem(NamedTuple):
    """Problem with a final loss."""

    description: str
    diverged: bool
    """True if the training failed. A model that only overfits has learnt its training data."""


def find_loss_problem(
    loss: float, best: float, vocab_size: int | None, train_loss: float | None = None
) -> LossProblem | None:
    """Return the problem with the last validation loss of a run, or None; losses are in nats per token.

    `best` is its lowest validation loss; uniform guessing has a loss of ln(vocab_size). A run that lost more than half
    of its improvement over guessing has diverged, unless its training loss is still low.
    """
    if vocab_size is None or vocab_size < 2:
        return None
    chance = math.log(vocab_size)
    half = (best + chance) / 2
    learnt = train_loss is not None and train_loss < half
    if loss > MARGIN * chance + SLACK:
        return LossProblem(f"loss above chance (ln {vocab_size} = {chance:.2f})", not learnt)
    if loss > half + SLACK and best < chance - 2 * SLACK:
        return LossProblem(f"loss far above its best of {best:.4f}", not learnt)
    return None
