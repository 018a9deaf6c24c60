"""Means and perplexities over documents, with their standard errors."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Metric(NamedTuple):
    """A number about a model, and its standard error where it has one."""

    value: float
    stderr: float | None = None


def compute_mean(values: Sequence[float]) -> Metric:
    """The mean, and the standard deviation of the sample over the root of its size."""
    n = len(values)
    center = math.fsum(values) / n
    if n < 2:
        return Metric(center)
    return Metric(center, math.sqrt(math.fsum((value - center) ** 2 for value in values) / (n - 1) / n))


def compute_perplexity(nats: Sequence[float]) -> Metric:
    """exp of the mean, and by the delta method that times the mean's standard error."""
    center = compute_mean(nats)
    value = bounded_exp(center.value)
    return Metric(value, None if center.stderr is None else min(value * center.stderr, bounded_exp(math.inf)))


def bounded_exp(nats: float) -> float:
    """e to this power, at most the largest that is a number: a model can be very sure of what is wrong."""
    return math.exp(min(nats, 709.0))
