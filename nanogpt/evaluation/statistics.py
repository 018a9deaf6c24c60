"""Means and perplexities over documents, with their standard errors."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Metric(NamedTuple):
    """A value, and its standard error if it has one."""

    value: float
    stderr: float | None = None


def compute_mean(values: Sequence[float]) -> Metric:
    """Return the mean and its standard error."""
    n = len(values)
    center = math.fsum(values) / n
    if n < 2:
        return Metric(center)
    return Metric(center, math.sqrt(math.fsum((value - center) ** 2 for value in values) / (n - 1) / n))


def compute_perplexity(nats: Sequence[float]) -> Metric:
    """Return exp of the mean; its standard error is by the delta method."""
    center = compute_mean(nats)
    value = bounded_exp(center.value)
    return Metric(value, None if center.stderr is None else min(value * center.stderr, bounded_exp(math.inf)))


def bounded_exp(nats: float) -> float:
    """Return exp(nats), at most exp(709), so that it stays finite for a model that is confidently wrong."""
    return math.exp(min(nats, 709.0))
