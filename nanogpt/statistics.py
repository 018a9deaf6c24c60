"""Mean over seeds with its 95 % interval (Student 1908)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """Mean of a group of seeds."""

    mean: float
    half: float | None
    """Half the width of the 95 % interval; None for a single seed, which says nothing about others."""
    n: int


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """Return the mean of the known values; None if none is known."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def sum_or_none(values: Iterable[float | None]) -> float | None:
    """Return the sum; None if a value is unknown, or there is none."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if known and len(known) == len(found) else None


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


def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """Return t such that Student's t lies within ±t with a probability of `level`."""
    from scipy.special import stdtrit  # a twentieth of what importing scipy.stats takes

    return float(stdtrit(freedom, (1 + level) / 2))


def t_probability(value: float, freedom: float) -> float:
    """Return the probability of a smaller value of Student's t."""
    from scipy.special import stdtr

    return float(stdtr(freedom, value))


def f_pvalue(statistic: float, count: int, freedom: float) -> float:
    """Return the probability of a larger F with `count` and `freedom` degrees of freedom."""
    from scipy.special import fdtrc

    return float(fdtrc(count, freedom, statistic))
