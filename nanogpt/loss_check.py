"""Whether the loss that a finished run ended with is that of a model that learnt something."""

import math
from typing import NamedTuple

MARGIN, SLACK = 1.05, 0.1  # a model just initialised is a little above chance


class Trouble(NamedTuple):
    """What is wrong with a final loss."""

    words: str
    diverged: bool
    """Whether the training failed. A model that only overfits has learnt its training data."""


def find_trouble(loss: float, best: float, vocab_size: int | None, train_loss: float | None = None) -> Trouble | None:
    """Return what is wrong with the last validation loss of a run, or None.

    `best` is its lowest validation loss, all in nats per token. Guessing all ids alike has a loss of ln(vocab_size).
    A run that lost more than half of what it had learnt counts as diverged, unless its training loss is still low.
    """
    if vocab_size is None or vocab_size < 2:
        return None
    chance = math.log(vocab_size)
    half = (best + chance) / 2
    learnt = train_loss is not None and train_loss < half
    if loss > MARGIN * chance + SLACK:
        return Trouble(f"loss above chance (ln {vocab_size} = {chance:.2f})", not learnt)
    if loss > half + SLACK and best < chance - 2 * SLACK:
        return Trouble(f"loss far above its best of {best:.4f}", not learnt)
    return None
