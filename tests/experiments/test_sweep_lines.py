"""Two and three varied keys as lines: best and highest stable values, diverged settings, keys that change together."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.plots.heatmap import heat_map
from experiments.plots.sensitivity import sensitivity_plot
from experiments.plots.theme import add_figure_legend
from experiments.ranking import SeedGroup, VariedKey, find_varied_keys, group_by_seed, rank_groups
from experiments.sweep_lines import SweepLines, split_into_lines
from nanogpt.statistics import estimate_mean
from nanogpt.tracking.plots import LIGHT
from tests.experiments.fake_runs import seeds, write_run
from tests.experiments.page import reported
from tests.experiments.test_ranking import results

RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def ranked(folder: Path) -> tuple[list[SeedGroup], list[VariedKey], SweepLines]:
    ((ranking,), _) = rank_groups(group_by_seed(results(folder)), "val_loss")
    varied = find_varied_keys(ranking.groups)
    lines = split_into_lines(ranking.groups, varied)
    assert lines is not None
    return ranking.groups, varied, lines


def drawn(folder: Path) -> tuple[list[Axes], Figure]:
    picture = sensitivity_plot(ranked(folder)[2], "val_loss")
    assert picture is not None
    figure = Figure(picture.size)
    picture.draw(figure, LIGHT)
    return [axes for axes in figure.axes if axes.axison], figure


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


def write_grid(folder: Path) -> None:
    """Write lr x dropout with three seeds: without dropout all rates are stable, with 0.1 one seed of the highest rate
    diverged, with 0.2 all seeds of the two highest.
    """
    for lr, dropout, seed in itertools.product(RATES, (0.0, 0.1, 0.2), (1, 2, 3)):
        bad = (dropout == 0.1 and lr == 3e-2 and seed == 2) or (dropout == 0.2 and lr >= 1e-2)
        loss = 2 + dropout + abs(np.log10(lr / (1e-2 if dropout < 0.2 else 3e-3))) / 10 + seed / 100
        keys = {"optimizer.lr": lr, "model.dropout": dropout, "training.seed": seed}
        state = "diverged" if bad else "finished"
        write_run(folder, [5.5, loss + 0.2, float(loss)], name=f"{lr}-{dropout}-{seed}", state=state, **keys)


def test_each_line_has_its_best_and_its_highest_stable_rate(tmp_path: Path) -> None:
    write_grid(tmp_path)
    _, _, sweep = ranked(tmp_path)
    assert (sweep.x.key, sweep.line and sweep.line.key, sweep.panel) == ("optimizer.lr", "model.dropout", None)
    found = [
        tuple(setting and sweep.x.value(setting) for setting in (line.best("val_loss"), line.highest_stable))
        for line in sweep.lines
    ]
    assert found == [(1e-2, 3e-2), (1e-2, 1e-2), (3e-3, 3e-3)]
    page = reported(tmp_path)
    assert page.column("best lr", table=1) == ["0.01", "0.01", "0.003"]
    assert page.column("highest stable lr", table=1) == ["0.03 (highest tried)", "0.01", "0.003"]
    assert page.column("diverged from", table=1) == ["-", "0.03", "0.01"]


def test_lines_over_a_logarithmic_rate_with_intervals_and_what_diverged(tmp_path: Path) -> None:
    write_grid(tmp_path)
    ((axes,), _) = drawn(tmp_path)
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "optimizer.lr"
    assert texts(axes) == ["×"] * 3, "one partly, two wholly diverged settings"
    joined = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == len(RATES)]
    ends = [np.isnan(np.asarray(line.get_ydata(), float)).tolist() for line in joined]
    assert ends == [[False] * 4, [False] * 3 + [True], [False] * 2 + [True] * 2], "no line to what diverged"
    bars = axes.containers[0].lines[2][0].get_segments()
    mean = estimate_mean([2.1 + seed / 100 for seed in (1, 2, 3)])
    assert mean and mean.half
    assert bars[0][:, 1].tolist() == pytest.approx([mean.mean - mean.half, mean.mean + mean.half])
    assert len({line.get_marker() for line in axes.lines if line.get_marker() not in ("None", "_", "*")}) == 3


def test_a_third_key_makes_panels_and_zipped_keys_share_a_label(tmp_path: Path) -> None:
    for lr, (width, heads), name in itertools.product(RATES, ((16, 2), (32, 4)), ("standard", "mup")):
        keys = {"optimizer.lr": lr, "model.n_embd": width, "model.n_head": heads, "parametrization.name": name}
        write_run(tmp_path, [5.0, 2 + lr], name=f"{lr}{width}{name}", **keys, **{"model.tie_weights": False})
    panels, figure = drawn(tmp_path)
    assert [axes.get_title(loc="left") for axes in panels] == [
        f"parametrization.name = {n}" for n in ("mup", "standard")
    ]
    assert panels[0].get_ylim() == panels[1].get_ylim()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["n_head, n_embd = 2, 16", "n_head, n_embd = 4, 32"]
    assert "n_head, n_embd" in reported(tmp_path).tables[0][0]


def test_a_heat_map_has_intervals_and_the_states_of_the_rest(tmp_path: Path) -> None:
    write_grid(tmp_path)
    groups, varied, _ = ranked(tmp_path)
    picture = heat_map(groups, varied, "val_loss")
    assert picture is not None
    figure = Figure()
    picture.draw(figure, LIGHT)
    cells = texts(figure.axes[0])
    assert len(cells) == 12 and cells.count("diverged") == 2 and sum(cell.endswith("\ndiverged") for cell in cells) == 1
    assert sum("\n±0.025" in cell for cell in cells) == 9


def test_every_seed_is_inside_the_picture(tmp_path: Path) -> None:
    """Also where the mean of others is far off, and where two seeds have an interval that dwarfs everything."""
    for lr, losses in {1e-3: [1.17, 1.87, 1.82], 1e-2: [1.68, 1.7, 1.75], 1e-1: [4.0, 4.1, 4.0]}.items():
        seeds(tmp_path / "far", losses, **{"optimizer.lr": lr})
    ((axes,), _) = drawn(tmp_path / "far")
    low, high = axes.get_ylim()
    assert low < 1.17 and 1.87 < high < 4.0 and texts(axes) == ["↑4.03"]
    for lr, losses in {1e-3: [1.9, 2.1], 1e-2: [2.1]}.items():
        seeds(tmp_path / "wide", losses, **{"optimizer.lr": lr})
    ((axes,), _) = drawn(tmp_path / "wide")
    low, high = axes.get_ylim()
    assert 1.5 < low < 1.9 and 2.1 < high < 2.6


def test_a_mean_that_the_axis_reaches_is_drawn(tmp_path: Path) -> None:
    """The interval of the best is so wide that the worst is inside of it."""
    for lr, losses in {1e-3: [3.80, 3.88], 1e-2: [3.46, 3.6], 1e-1: [3.57, 3.59]}.items():
        seeds(tmp_path, losses, **{"optimizer.lr": lr})
    ((axes,), _) = drawn(tmp_path)
    assert not np.isnan(np.asarray(axes.lines[0].get_ydata(), float)).any() and not texts(axes)


def test_what_is_unknown_is_marked_and_not_joined(tmp_path: Path) -> None:
    for lr, state in zip(RATES, ("finished", "running", "finished", "finished"), strict=True):
        losses = [5.0, 4.0, 3.0, 2.5, 2.0 + lr][: 3 if state == "running" else 5]
        write_run(tmp_path, losses, name=f"{lr}", state=state, **{"optimizer.lr": lr, "training.steps": 40})
    ((axes,), _) = drawn(tmp_path)
    assert texts(axes) == ["?"]
    joined = next(line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 4)
    assert np.isnan(np.asarray(joined.get_ydata(), float)).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("label", "columns"), [("lr = 1", 3), ("mean, 95 % interval, cut", 2), ("a long label " * 3, 1)]
)
def test_a_legend_has_the_columns_that_fit(label: str, columns: int) -> None:
    figure = Figure((5, 3))
    add_figure_legend(figure, [Line2D([], [], label=f"{label} {i}") for i in range(3)], LIGHT, 3)
    (legend,) = figure.legends
    figure.draw_without_rendering()
    rows = {round(text.get_window_extent().y0) for text in legend.get_texts()}
    assert legend.get_window_extent().width <= figure.bbox.width and len(rows) == math.ceil(3 / columns)
