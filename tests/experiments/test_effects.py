"""Effects, interactions and responses against least squares over single runs, and over simulated studies."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from experiments.effects import Means, Response, find_optimum, fit_effects, fit_response, is_log_spaced
from nanogpt.verdicts import Noise, estimate_noise

Array = NDArray[np.float64]
GRID = list(product(range(3), range(4)))  # levels of two keys


def draw_runs(rng: np.random.Generator, levels: Sequence[Sequence[int]], seeds: int, truth: Array) -> Array:
    """Return losses with standard deviation 1, (settings, seeds)."""
    return np.array([truth[tuple(row)] for row in levels])[:, None] + rng.normal(size=(len(levels), seeds))


def pooled(runs: Array) -> Noise:
    count, seeds = runs.shape
    return Noise(
        [float(runs.var(axis=1, ddof=1).mean())] * count, [count * (seeds - 1)] * count, frozenset(range(count))
    )


def dummies(levels: Sequence[Sequence[int]], keys: Sequence[int]) -> Array:
    """Return an indicator for each combination of the levels of `keys`, (settings, combinations)."""
    names = sorted({tuple(row[key] for key in keys) for row in levels})
    return np.array([[float(tuple(row[key] for key in keys) == name) for name in names] for row in levels])


def sum_of_squares(y: Array, *columns: Array) -> tuple[float, int]:
    """Return what least squares leave, and the rank of the model."""
    design = np.hstack([np.ones((len(y), 1)), *columns])
    coefficients, _, rank, _ = np.linalg.lstsq(design, y)
    return float(((y - design @ coefficients) ** 2).sum()), int(rank)


def test_a_full_grid_is_a_two_way_analysis_of_variance() -> None:
    rng = np.random.default_rng(1)
    runs = draw_runs(rng, GRID, 3, rng.normal(size=(3, 4)))
    found = fit_effects(GRID, list(runs.mean(axis=1)), pooled(runs), [3] * 12)
    y, levels = runs.ravel(), [row for row in GRID for _ in range(3)]
    a, b, both = (dummies(levels, keys) for keys in ((0,), (1,), (0, 1)))
    error, rank = sum_of_squares(y, both)
    freedom = len(y) - rank

    def pvalue(without: Sequence[Array], full: Sequence[Array]) -> float:
        (more, few), (less, many) = sum_of_squares(y, *without), sum_of_squares(y, *full)
        return float(stats.f.sf((more - less) / (many - few) / (error / freedom), many - few, freedom))

    expected = [pvalue([b], [a, b]), pvalue([a], [a, b]), pvalue([a, b], [both])]
    terms = [*found.mains, *found.interactions]
    assert [term.pvalue for term in terms] == pytest.approx(expected)
    table = runs.mean(axis=1).reshape(3, 4)
    rows, columns = table.mean(axis=1) - table.mean(), table.mean(axis=0) - table.mean()
    rest = (table - table.mean()) - rows[:, None] - columns
    assert [[effect.value for effect in term.effects] for term in terms] == [
        pytest.approx(values.ravel().tolist()) for values in (rows, columns, rest)
    ]
    half = stats.t.ppf(1 - 0.025 / 3, freedom) * np.sqrt(error / freedom * (1 / 12 - 1 / 36))
    assert found.mains[0].effects[0].half == pytest.approx(half)
    assert found.confounded == found.uncrossed == [] and not found.means.from_residuals


def test_an_incomplete_grid_is_least_squares_without_interactions() -> None:
    rng = np.random.default_rng(2)
    levels = [row for row in GRID if row not in ((0, 0), (2, 3))]
    means = rng.normal(size=len(levels))
    found = fit_effects(levels, list(means), None, [1] * len(levels))
    a, b = dummies(levels, (0,)), dummies(levels, (1,))
    coefficients = np.linalg.lstsq(np.hstack([a, b]), means)[0]
    for term, own in zip(found.mains, (coefficients[:3], coefficients[3:]), strict=True):
        assert [effect.value for effect in term.effects] == pytest.approx((own - own.mean()).tolist())
    left, rank = sum_of_squares(means, a, b)
    assert found.uncrossed == [(0, 1)] and found.interactions == [] and found.means.from_residuals
    assert found.means.variances == pytest.approx(left / (len(means) - rank))


def test_settings_of_their_own_variance_are_welchs_test() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, 5), rng.normal(1, 6, 4)
    noise = Noise([float(a.var(ddof=1)), float(b.var(ddof=1))], [4, 3], frozenset({0}))
    (term,) = fit_effects([[0], [1]], [float(a.mean()), float(b.mean())], noise, [5, 4]).mains
    theirs = stats.ttest_ind(b, a, equal_var=False)
    low, high = theirs.confidence_interval(0.95)
    assert term.effects[1].value == pytest.approx((b.mean() - a.mean()) / 2)
    assert term.effects[1].half == pytest.approx((high - low) / 4) and term.pvalue == pytest.approx(theirs.pvalue)


def test_confounded_keys_are_named() -> None:
    together = [(a, b, b) for a, b in GRID]
    found = fit_effects(together, [float(i) for i in range(12)], None, [1] * 12)
    assert found.confounded == [(1, 2)] and [term.keys for term in found.mains] == [(0,)]
    sums = [(a, b, a + b) for a, b in GRID]  # each two of them are estimable, all three are not
    found = fit_effects(sums, [float(i) for i in range(12)], None, [1] * 12)
    assert found.confounded == [(0, 1, 2)] and found.mains == [] and found.uncrossed == [(0, 2), (1, 2)]


def test_log_spaced_values() -> None:
    assert is_log_spaced([1e-3, 3e-3, 1e-2, 3e-2]) and is_log_spaced([0.01, 0.02, 0.04]) and is_log_spaced([1, 10, 100])
    assert not any(map(is_log_spaced, ([0.0, 0.1, 0.2], [1e-3, 1e-2], [0.1, 0.2, 0.3], [1e-4, 1e-3, 2e-3], [-1, 1, 8])))


def make_means(losses: Sequence[float], deviation: float, seeds: int = 3) -> Means:
    count = len(losses)
    noise = Noise([deviation**2] * count, [count * (seeds - 1)] * count, frozenset(range(count)))
    return Means(losses, noise, [seeds] * count, np.ones((count, 1)))


RATES = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]


def test_a_parabola_is_found() -> None:
    losses = [2.0 + 0.05 * np.log2(rate / 3e-3) ** 2 for rate in RATES]
    found = fit_response(RATES, np.eye(6), make_means(losses, 0.001))
    assert (
        found.used == tuple(RATES)
        and found.optimum == pytest.approx(3e-3)
        and found.doubled.value == pytest.approx(0.05)
    )
    assert found.low is not None and found.high is not None and 2.9e-3 < found.low < 3e-3 < found.high < 3.1e-3
    slope = np.polyfit(np.log2(RATES), losses, 1)[0]
    assert found.slope.value == pytest.approx(slope)


def test_a_steep_end_is_left_out() -> None:
    losses = [2.0 + 0.05 * np.log2(rate / 3e-3) ** 2 for rate in RATES]
    losses[-1] += 1.0
    found = fit_response(RATES, np.eye(6), make_means(losses, 0.001))
    assert found.used == tuple(RATES[:-1]) and found.optimum == pytest.approx(3e-3)


def test_a_falling_loss_has_no_optimum() -> None:
    for curvature in (0.0, 0.001, -0.01):
        losses = [2.0 - 0.05 * i + curvature * i**2 for i in range(6)]
        found = fit_response(RATES, np.eye(6), make_means(losses, 0.001))
        assert (found.optimum, found.low, found.high) == (None, None, None) and found.slope.value < 0


def test_the_interval_of_an_optimum_has_the_points_where_the_slope_may_be_zero() -> None:
    losses, x = [2.11, 2.02, 2.03, 2.09, 2.31, 2.4], np.arange(6.0)
    means = make_means(losses, 0.05, 4)
    terms = np.linalg.pinv(np.stack([np.ones(6), x, x**2], axis=1))[1:]
    best, low, high = find_optimum(terms, means)
    _, linear, quadratic = np.polyfit(x, losses, 2)[::-1]
    assert best == pytest.approx(-linear / 2 / quadratic) and low is not None and high is not None
    inverse = np.linalg.inv((design := np.stack([np.ones(6), x, x**2], axis=1)).T @ design) * 0.05**2 / 4
    for end in (low, high):
        direction = np.array([0.0, 1.0, 2 * end])
        statistic = abs(linear + 2 * end * quadratic) / np.sqrt(direction @ inverse @ direction)
        assert statistic == pytest.approx(stats.t.ppf(0.975, 18))
    assert low < best < high
    noisy = find_optimum(terms, make_means(losses, 0.9, 4))
    assert noisy[0] == pytest.approx(best) and noisy[1:] == (None, None)


def miss_rates(studies: int) -> tuple[float, float, float, float]:
    """Return how often any interval of a key, or of an interaction, lacks the truth, p of none is below 5 %, and the
    interval of the optimum lacks it.
    """
    rng = np.random.default_rng(4)
    x = np.log2(RATES[:4]) - np.log2(3e-3)
    truth = np.stack([2.0 * x**2 + shift for shift in (0.0, 1.0, 5.0)])
    rows = truth.mean(axis=1) - truth.mean()
    missed = np.zeros(4)
    for _ in range(studies):
        runs = draw_runs(rng, GRID, 3, truth)
        noise = estimate_noise([dict(enumerate(own.tolist())) for own in runs])
        found = fit_effects(GRID, list(runs.mean(axis=1)), noise, [3] * 12)
        key, (crossed,) = found.mains[0], found.interactions
        missed[0] += any(abs(e.value - t) > (e.half or 0) for e, t in zip(key.effects, rows, strict=True))
        missed[1] += any(abs(e.value) > (e.half or 0) for e in crossed.effects)
        missed[2] += (crossed.pvalue or 0) < 0.05
        missed[3] += not holds(fit_response(RATES[:4], found.mains[1].weights, found.means), 3e-3)
    a, b, c, d = (missed / studies).tolist()
    return a, b, c, d


def holds(response: Response, value: float) -> bool:
    return response.optimum is not None and (response.low or 0.0) <= value <= (response.high or 1.0)


def check_miss_rates(studies: int, slack: float) -> None:
    key, crossed, pvalue, optimum = miss_rates(studies)
    assert 0.02 - slack < key < 0.06 + slack and crossed < 0.06 + slack  # Bonferroni: at most 5 %
    assert 0.04 - slack < pvalue < 0.06 + slack and 0.03 - slack < optimum < 0.07 + slack


def test_intervals_hold_in_simulated_studies() -> None:
    check_miss_rates(200, 0.045)


@pytest.mark.slow
def test_intervals_hold_in_ten_thousand_studies() -> None:
    check_miss_rates(10_000, 0.005)
