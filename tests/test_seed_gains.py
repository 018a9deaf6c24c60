"""Proposed seeds against intervals of studies that have them."""

from itertools import pairwise

import numpy as np
import pytest

from nanogpt.seed_gains import choose_seeds
from nanogpt.verdicts import Losses, judge_settings
from tests.test_verdicts import study


def add_expected_seed(settings: list[Losses], i: int) -> list[Losses]:
    """Add a seed to one setting that leaves its mean and the pooled variance as they are."""
    within = [np.var(list(losses.values()), ddof=0) * len(losses) for losses in settings]
    pooled = sum(within) / sum(len(losses) - 1 for losses in settings)
    own = np.array(list(settings[i].values()))
    center = own - own.mean()
    scale = np.sqrt((within[i] + pooled) / within[i])
    more = {**dict(enumerate((own.mean() + scale * center).tolist())), 99: float(own.mean())}
    return [more if j == i else losses for j, losses in enumerate(settings)]


@pytest.mark.parametrize("costs", [[1.0, 1.0, 1.0], [1.0, 1.0, 0.01]])
def test_a_seed_narrows_what_it_says(costs: list[float]) -> None:
    settings = study([0, 0.3, 0.4], 3, np.random.default_rng(1))
    judged = judge_settings(settings)
    assert {verdict.kind for verdict in judged.verdicts} == {"reference", "undecided"}
    (gain,) = choose_seeds(judged, [3, 3, 3], costs, 1)
    (i,) = gain.settings
    assert i == (judged.reference if costs[2] == 1 else 2), "the best narrows both; a cheap one is worth more"
    halves = [v.half for v in judged.verdicts if v.half is not None]
    then = [v.half for v in judge_settings(add_expected_seed(settings, i)).verdicts if v.half is not None]
    assert gain.half_width == pytest.approx(max(halves))
    assert gain.gain == pytest.approx(sum(halves) - sum(then), rel=1e-6)
    assert gain.half_width_then == pytest.approx(then[halves.index(max(halves))], rel=1e-6)


def test_each_choice_follows_from_those_before() -> None:
    judged = judge_settings(study([0, 0.1, 9.0], 3, np.random.default_rng(2)))
    gains = choose_seeds(judged, [3, 3, 3], [1.0] * 3, 6)
    assert len(gains) == 6 and {i for gain in gains for i in gain.settings} == {0, 1}, "the third is decided"
    for one, other in pairwise(gains):
        assert one.half_width_then == pytest.approx(other.half_width) and other.gain < one.gain


def test_blocks_get_a_seed_each() -> None:
    judged = judge_settings(study([0, 0.3, 0.2], 4, np.random.default_rng(3), blocks=30))
    assert judged.noise is not None and judged.noise.blocked
    assert all(gain.settings == [0, 1, 2] for gain in choose_seeds(judged, [4, 4, 4], [1.0] * 3, 2))


def test_nothing_is_left_once_all_is_decided() -> None:
    judged = judge_settings(study([0, 50, 90], 3, np.random.default_rng(4)))
    assert choose_seeds(judged, [3, 3, 3], [1.0] * 3, 5) == []
    close = judge_settings(study([0, 3, 90], 3, np.random.default_rng(5)))
    (undecided,) = [v for v in close.verdicts if v.kind == "undecided"]
    gains = choose_seeds(close, [3, 3, 3], [1.0] * 3, 100)
    assert 0 < len(gains) < 20 and gains[-1].half_width_then < abs(undecided.difference) <= gains[-1].half_width
