"""Effects of the keys of a study: a linear model of the settings' mean losses, and a parabola over log2 of a number.

All estimates are weighted sums of the means, so the noise of the means (nanogpt/verdicts.py) gives their intervals.
Those of one key, and those of one interaction, hold together (Bonferroni).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt.statistics import LEVEL, f_pvalue, t_quantile
from nanogpt.verdicts import Noise

Array = NDArray[np.floating[Any]]

UNFIT = 0.05  # p of a parabola below which the value farthest from the best is left out
MIN_RANGE, MAX_GAP = 4.0, 2.5  # of log-spaced values: highest over lowest, and largest gap over smallest


@dataclass(frozen=True)
class Effect:
    """Estimate, and half of its 95 % interval; None if nothing is known about noise."""

    value: float
    half: float | None


@dataclass(frozen=True)
class Term:
    """Effects of one key, or of two beyond their own effects."""

    keys: tuple[int, ...]
    levels: Sequence[tuple[int, ...]]
    effects: Sequence[Effect]
    weights: Array
    """Weight of each setting's mean in each effect, (effects, settings)."""
    pvalue: float | None
    """p of no effect (F test); None if nothing is known about noise."""


@dataclass(frozen=True)
class Response:
    """Parabola of the loss over log2 of a value."""

    used: tuple[float, ...]
    """Values that it fits."""
    optimum: float | None
    """Value with the lowest loss; None if that is outside the used values, or the parabola has no minimum."""
    low: float | None
    high: float | None
    """95 % interval of the optimum (Fieller 1954); None if it has no end among the values."""
    doubled: Effect
    """Increase of the loss at twice or half the optimum."""
    slope: Effect
    """Change of the loss per doubling, of a straight line over all values."""


class Means:
    """Mean loss of each setting, with its noise: as given, else what main effects leave of the means."""

    def __init__(self, values: Sequence[float], noise: Noise | None, sizes: Sequence[int], design: Array) -> None:
        self.values = np.array(values)
        self.from_residuals = noise is None
        """True if no setting has two seeds, so that noise is what the columns of `design` leave."""
        if noise is not None:
            self.variances, self.freedom = np.array(noise.variances) / np.array(sizes), np.array(noise.freedom, float)
            self.shared = np.array([i in noise.shared for i in range(len(sizes))])
        else:
            rest = self.values - design @ (np.linalg.pinv(design) @ self.values)
            left, squares = len(values) - rank(design), float(rest @ rest)
            exact = left == 0 or squares <= 1e-18 * float(self.values @ self.values)
            self.variances = np.full(len(values), 0.0 if exact else squares / left)
            self.freedom, self.shared = np.full(len(values), float(left)), np.full(len(values), True)
        self.known = bool(self.variances.any())
        """False if nothing is known about noise."""

    def freedom_of(self, weights: Array) -> float:
        """Return the degrees of freedom of the variance of a weighted sum (Satterthwaite 1946)."""
        parts = weights**2 * self.variances
        below = float((parts**2 / self.freedom)[~self.shared].sum())
        if self.shared.any():
            below += float(parts[self.shared].sum()) ** 2 / float(self.freedom[self.shared][0])
        return float(parts.sum()) ** 2 / below if below else float(self.freedom.min())

    def estimate(self, weights: Array, together: int = 1) -> Effect:
        """Return a weighted sum with its interval, which holds for `together` of them."""
        value = float(weights @ self.values)
        if not self.known:
            return Effect(value, None)
        quantile = t_quantile(self.freedom_of(weights), 1 - (1 - LEVEL) / together)
        return Effect(value, quantile * float(np.sqrt(weights**2 @ self.variances)))

    def pvalue(self, weights: Array) -> float | None:
        """Return p of all weighted sums being zero (Wald). The rows of `weights` may depend on each other."""
        if not self.known:
            return None
        inverse = np.linalg.pinv((weights * self.variances) @ weights.T, hermitian=True)
        statistic = float((weights @ self.values) @ inverse @ (weights @ self.values)) / rank(weights)
        return f_pvalue(statistic, rank(weights), min(map(self.freedom_of, weights)))


@dataclass(frozen=True)
class Effects:
    """Terms of a study's model."""

    means: Means
    mains: Sequence[Term]
    interactions: Sequence[Term]
    confounded: Sequence[tuple[int, ...]]
    """Keys whose effects can't be told apart: they have no main effect."""
    uncrossed: Sequence[tuple[int, int]]
    """Pairs of keys of which not all combinations were tried: they have no interaction."""


def fit_effects(
    levels: Sequence[Sequence[int]], means: Sequence[float], noise: Noise | None, sizes: Sequence[int]
) -> Effects:
    """Return main effects of all keys, and interactions of all pairs that are crossed.

    `levels` has the number of each key's level for each setting, `sizes` the number of its seeds.
    """
    codes = [code_levels([row[key] for row in levels]) for key in range(len(levels[0]))]
    ones, every = np.ones((len(means), 1)), range(len(codes))
    y = Means(means, noise, sizes, np.hstack([ones, *codes]))
    others = [np.hstack([ones, *codes[:key], *codes[key + 1 :]]) for key in every]
    lost = [key for key in every if not is_estimable(codes[key], others[key])]
    mains = [fit_term((key,), levels, codes[key], others[key], y) for key in every if key not in lost]
    crossed, uncrossed = list[Term](), list[tuple[int, int]]()
    for a, b in combinations(every, 2):
        product = np.stack([np.outer(*pair).ravel() for pair in zip(codes[a], codes[b], strict=True)])
        if len({(row[a], row[b]) for row in levels}) < (codes[a].shape[1] + 1) * (codes[b].shape[1] + 1):
            uncrossed.append((a, b))
        elif not y.from_residuals and is_estimable(product, np.hstack([ones, *codes])):
            crossed.append(fit_term((a, b), levels, product, np.hstack([ones, *codes]), y))
    pairs = [(a, b) for a, b in combinations(lost, 2) if not is_estimable(codes[a], np.hstack([ones, codes[b]]))]
    rest = tuple(key for key in lost if not any(key in pair for pair in pairs))
    return Effects(y, mains, crossed, [*pairs, *([rest] if rest else [])], uncrossed)


def code_levels(numbers: Sequence[int]) -> Array:
    """Return one column for each level but the last, (settings, levels - 1); the effects of all levels sum to zero."""
    table = np.eye(max(numbers) + 1)[list(numbers)]
    return table[:, :-1] - table[:, -1:]


def is_estimable(columns: Array, others: Array) -> bool:
    """Return whether the effect of `columns` can be told from those of the others."""
    return rank(np.hstack([others, columns])) == rank(others) + columns.shape[1]


def rank(columns: Array) -> int:
    return int(np.linalg.matrix_rank(columns))


def fit_term(
    keys: tuple[int, ...], levels: Sequence[Sequence[int]], columns: Array, others: Array, means: Means
) -> Term:
    """Return the effects at all levels of one key, or of two."""
    terms: Array = np.linalg.pinv(np.hstack([others, columns]))[-columns.shape[1] :]
    code = {tuple(row[key] for key in keys): own for row, own in zip(levels, columns, strict=True)}
    weights: Array = np.stack([code[level] for level in sorted(code)]) @ terms
    together = len(code) if columns.shape[1] > 1 else 1  # two effects of opposite sign are one
    effects = [means.estimate(row, together) for row in weights]
    return Term(keys, sorted(code), effects, weights, means.pvalue(terms))


def is_log_spaced(values: Sequence[float]) -> bool:
    """Return whether three or more increasing values are positive and spaced about evenly in the logarithm."""
    if len(values) < 3 or values[0] <= 0 or values[-1] < MIN_RANGE * values[0]:
        return False
    gaps = np.diff(np.log(values))
    return bool(gaps.max() <= MAX_GAP * gaps.min())


def fit_response(values: Sequence[float], weights: Array, means: Means) -> Response:
    """Return the parabola of the losses `weights @ means` at increasing values.

    Values far from the best are left out, one by one, as long as the parabola misses more than noise explains.
    """
    x = np.log2(np.array(values))
    best = int((weights @ means.values).argmin())

    def misfit(window: slice) -> float:
        """Return p of the parabola through the values in a window."""
        powers = np.stack([x[window] ** power for power in range(3)], axis=1)
        rest = (np.eye(len(powers)) - powers @ np.linalg.pinv(powers)) @ weights[window]
        return 1.0 if len(powers) == 3 else means.pvalue(rest) or 0.0

    window = slice(0, len(x))
    while misfit(window) < UNFIT:
        ends = sorted((window.start, window.stop - 1), key=lambda end: -abs(x[end] - x[best]))
        shorter = [slice(window.start + (end == window.start), window.stop - (end != window.start)) for end in ends]
        window = max((part for part in shorter if part.start <= best < part.stop), key=misfit)
    at = x[window] - x[best]
    terms: Array = np.linalg.pinv(np.stack([np.ones_like(at), at, at**2], axis=1))[1:] @ weights[window]
    optimum, *ends = (
        None if root is None else float(np.exp2(np.clip(root + x[best], -300, 300)))
        for root in find_optimum(terms, means)
    )
    if optimum is None or not values[window.start] <= optimum <= values[window.stop - 1]:
        optimum, ends = None, [None, None]
    low, high = (end if end is not None and values[0] <= end <= values[-1] else None for end in ends)
    line: Array = (x - x.mean()) / float(((x - x.mean()) ** 2).sum()) @ weights
    return Response(tuple(values[window]), optimum, low, high, means.estimate(terms[1]), means.estimate(line))


def find_optimum(terms: Array, means: Means) -> tuple[float | None, float | None, float | None]:
    """Return the minimum of a parabola, and the ends of its 95 % interval; None for what it does not have.

    `terms` are the weights of its linear and its quadratic coefficient. The interval holds each m for which the slope
    at m, linear + 2 m quadratic, may be zero.
    """
    linear, quadratic = map(float, terms @ means.values)
    if quadratic <= 0 or not means.known:
        return None, None, None
    (a, b), (_, c) = ((terms * means.variances) @ terms.T).tolist()
    squared = t_quantile(min(map(means.freedom_of, terms))) ** 2
    middle, first, last = quadratic**2 - squared * c, linear * quadratic - squared * b, linear**2 - squared * a
    if middle <= 0:  # the curvature may be zero
        return -linear / quadratic / 2, None, None
    root = float(np.sqrt(max(0.0, first**2 - middle * last)))
    return -linear / quadratic / 2, (-first - root) / middle / 2, (-first + root) / middle / 2
