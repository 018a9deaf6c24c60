"""Errors of verdicts at looks, and the runs that they take, over many simulated studies."""

import math
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pytest

from launch.sequential import SequentialSetting, find_end, judge_left, plan_stages
from nanogpt.verdicts import LOOK_LEVEL, tukey_quantile


@pytest.fixture
def fast_quantile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpolate the quantile of the studentized range, which takes a second, in the inverse of the freedom."""
    inverses = np.concatenate([1 / np.arange(1, 9), 1 / np.array([10, 13, 18, 28, 60, 200, 1e4])])[::-1]

    @cache
    def known(settings: int, level: float) -> list[float]:
        return [tukey_quantile(settings, float(1 / inverse), level) for inverse in inverses]

    def quantile(settings: int, freedom: float, level: float) -> float:
        return float(np.interp(1 / freedom, inverses, known(settings, level)))

    for settings, freedom in ((2, 14.0), (5, 40.0)):
        assert quantile(settings, freedom, LOOK_LEVEL) == pytest.approx(
            tukey_quantile(settings, freedom, LOOK_LEVEL), rel=2e-3
        )
    monkeypatch.setattr("nanogpt.verdicts.tukey_quantile", quantile)


def simulate(means: Sequence[float], losses: np.ndarray, futility: bool = True) -> tuple[bool, str, int, set[int]]:
    """Take the looks of a study with these losses (settings, seeds). Return whether a setting was called worse than one
    that is not better, why the study ended, the number of its runs, and the settings that were called worse.
    """
    most = losses.shape[1]
    found = [SequentialSetting() for _ in means]
    wrong = False
    for seeds in plan_stages(most):
        left = [i for i, setting in enumerate(found) if not setting.state]
        for i in left:
            if not found[i].set_aside:
                found[i].seeds, found[i].losses = seeds, dict(enumerate(losses[i, :seeds].tolist()))
        judge_left(found, 0.0, most if futility else None)
        (best,) = [i for i in left if (verdict := found[i].verdict) and verdict.kind == "reference"]
        wrong |= any(found[i].state == "worse" and means[i] <= means[best] for i in left)
        if end := find_end([found[i] for i in left], "decided", last=seeds == most):
            worse = {i for i, setting in enumerate(found) if setting.state == "worse"}
            return wrong, end, sum(setting.seeds for setting in found), worse
    raise AssertionError("the last look ends it")


def count_errors(means: Sequence[float], most: int, studies: int) -> tuple[float, float, float]:
    """Return the shares of studies with an error and with a decision, and the share of a full grid's runs."""
    ends = [simulate(means, losses) for losses in draw_losses(means, most, studies)]
    shares = (sum(wrong for wrong, *_ in ends), sum(end == "decided" for _, end, *_ in ends))
    runs = sum(runs for _, _, runs, _ in ends) / (len(means) * most)
    return shares[0] / studies, shares[1] / studies, runs / studies


def draw_losses(means: Sequence[float], most: int, studies: int) -> Iterator[np.ndarray]:
    """Yield losses (settings, seeds) with a standard deviation of 1."""
    rng = np.random.default_rng(len(means) + most)
    for _ in range(studies):
        yield rng.normal(np.array(means)[:, None], 1, (len(means), most))


@pytest.mark.usefixtures("fast_quantile")
@pytest.mark.parametrize(
    ("settings", "most", "studies"),
    [
        (2, 12, 200),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, 96, 10_000), (5, 12, 10_000), (12, 96, 500))),
    ],
)
def test_family_wise_error_of_equal_settings(settings: int, most: int, studies: int) -> None:
    wrong, _, _ = count_errors([0.0] * settings, most, studies)
    print(f"{settings} equal settings, up to {most} seeds: {wrong:.2%} with a false verdict")
    assert wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / studies)


@pytest.mark.usefixtures("fast_quantile")
@pytest.mark.parametrize("studies", [50, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_better_setting_is_found_with_a_third_of_the_runs(studies: int) -> None:
    """Twelve settings, the best by three standard deviations of a run."""
    means = [0.0, 3.0, 3.0, 3.0, 4.0, 4.0, 6.0, 8.0, 8.0, 10.0, 12.0, 12.0]
    wrong, decided, runs = count_errors(means, 12, studies)
    print(f"one better setting: {wrong:.2%} with a false verdict, {decided:.1%} decided, {runs:.1%} of the runs")
    assert wrong <= 0.05 and decided >= 0.95 and runs <= 0.4


@pytest.mark.usefixtures("fast_quantile")
@pytest.mark.parametrize("studies", [40, pytest.param(2_000, marks=pytest.mark.slow)])
def test_settings_that_are_unlikely_to_be_decided_get_no_more_seeds(studies: int) -> None:
    """Four of eight settings are near the best; seeds that would not tell them apart are not trained."""
    means, told, runs = [0.0, 0.3, 0.5, 1.0, 6.0, 7.0, 8.0, 9.0], [0, 0], [0, 0]
    for losses in draw_losses(means, 12, studies):
        for i, futility in enumerate((False, True)):
            _, _, count, worse = simulate(means, losses, futility)
            told[i], runs[i] = told[i] + len(worse), runs[i] + count
    print(f"near settings: {runs[1] / runs[0]:.1%} of the runs, {told[1] / told[0]:.1%} of the verdicts")
    assert told[1] >= 0.98 * told[0] and runs[1] < 0.75 * runs[0]
