"""Intervals are scipy's."""

import numpy as np
import pytest
from scipy import stats

from nanogpt.statistics import estimate_mean

DRAWS = np.random.default_rng(0)
SAMPLES = [DRAWS.normal(2.5, 0.1, n).tolist() for n in (2, 3, 5, 12)]


@pytest.mark.parametrize("values", SAMPLES, ids=len)
def test_the_interval_is_students(values: list[float]) -> None:
    found = estimate_mean(values)
    assert found is not None and found.half is not None and found.n == len(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))


def test_one_seed_has_no_interval() -> None:
    one = estimate_mean([2.5])
    assert one is not None and (one.mean, one.half, one.n) == (2.5, None, 1)
    assert estimate_mean([]) is None


def test_an_interval_of_95_percent_holds_the_mean_19_times_in_20() -> None:
    draws = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        found = estimate_mean(draws.normal(0, 1, 3).tolist())
        assert found is not None and found.half is not None
        inside += abs(found.mean) <= found.half
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)
