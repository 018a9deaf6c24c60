"""Statistics over seeds: mean with 95 % interval (Student 1908), and whether two groups differ (Welch 1947)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """Mean of a group of seeds."""

    mean: float
    half: float | None
    """Half the width of the 95 % interval; None for a single seed, which says nothing about others."""
    n: int


@dataclass(frozen=True)
class Difference:
    """Difference of two means."""

    mean: float
    half: float
    """Half the width of its 95 % interval."""
    p: float
    """Of a difference at least as large where there is none."""

    @property
    def significant(self) -> bool:
        return self.p < 1 - LEVEL


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    center = mean(values)
    return math.fsum((value - center) ** 2 for value in values) / (len(values) - 1)


def estimate_mean(values: Sequence[float]) -> Estimate | None:
    """Return mean and interval; None without values."""
    if not values:
        return None
    n = len(values)
    half = None if n < 2 else t_quantile(n - 1) * math.sqrt(variance(values) / n)
    return Estimate(mean(values), half, n)


def welch_test(values: Sequence[float], others: Sequence[float]) -> Difference | None:
    """Return the result of Welch's test for unequal variances. None if a side has one value, or nothing varies."""
    if min(len(values), len(others)) < 2:
        return None
    a, b = variance(values) / len(values), variance(others) / len(others)
    if a + b == 0:
        return None
    freedom = (a + b) ** 2 / (a**2 / (len(values) - 1) + b**2 / (len(others) - 1))
    apart, error = mean(values) - mean(others), math.sqrt(a + b)
    return Difference(apart, t_quantile(freedom) * error, 2 * t_cdf(freedom, -abs(apart) / error))


def t_quantile(freedom: float) -> float:
    """Return t such that Student's t lies within ±t with a probability of 95 %."""
    from scipy.special import stdtrit  # a twentieth of what importing scipy.stats takes

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def t_cdf(freedom: float, t: float) -> float:
    """Return the probability that Student's t is below `t`."""
    from scipy.special import stdtr

    return float(stdtr(freedom, t))
