"""Chinchilla's laws: nanoGPT's scaling_laws notebook, and a search in place of the closed form."""

import numpy as np
import pytest

from experiments.scaling.laws import (
    find_optimum,
    find_optimum_of_size,
    fit_published_line,
    predict_loss,
    published_tokens,
)
from nanogpt.config import LawConfig

LAW = LawConfig()


def test_approach_3_at_chinchillas_budget() -> None:
    """The notebook searches a grid of sizes, 16 a decade: 316.23 M parameters and 11.65 B tokens for 2.21e19 FLOPs."""
    sizes = 10 ** np.arange(7, 11, 1 / 16)
    grid = min(sizes, key=lambda n: predict_loss(LAW, n, 2.21e19 / 6 / n))
    assert grid == pytest.approx(316.23e6, rel=1e-4) and 2.21e19 / 6 / grid == pytest.approx(11.65e9, rel=1e-3)
    ours = find_optimum(LAW, 2.21e19)
    assert ours.loss < predict_loss(LAW, grid, 2.21e19 / 6 / grid) < ours.loss + 1e-4
    assert ours.n_params == pytest.approx(grid, rel=0.05)


def test_the_closed_form_is_the_minimum() -> None:
    for law in (LAW, LawConfig(E=0.5, A=20, B=3000, alpha=0.5, beta=0.4)):
        for flops in (1e12, 1e17, 1e22):
            ours = find_optimum(law, flops)
            sizes = ours.n_params * np.geomspace(0.1, 10, 2001)
            assert ours.n_params == pytest.approx(
                min(sizes, key=lambda n: predict_loss(law, n, flops / 6 / n)), rel=2e-3
            )
            assert 6 * ours.n_params * ours.tokens == pytest.approx(flops)


def test_a_size_of_400_million() -> None:
    """The notebook reads 14.43 B tokens, 3.459892e19 FLOPs and a loss of 2.76 off its table of optima."""
    ours = find_optimum_of_size(LAW, 400e6)
    assert ours.n_params == pytest.approx(400e6)
    assert ours.tokens == pytest.approx(14.43e9, rel=0.005) and ours.flops == pytest.approx(3.459892e19, rel=0.005)
    assert ours.loss == pytest.approx(2.76, abs=0.001)


def test_approach_2() -> None:
    """The notebook's line through the published optima, and its 2.292e9 tokens for GPT-2 small."""
    assert fit_published_line() == pytest.approx((1.04096, 0.93539), abs=1e-5)
    assert published_tokens(124e6) == pytest.approx(2.292e9, rel=1e-3)
