"""Plots of the loss over what was varied: lines over one key, a heat map over two, parallel coordinates over more."""

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.plots.theme import (
    WIDE,
    Picture,
    Style,
    Theme,
    add_color_bar,
    color_range,
    make_picture,
    plot_label,
    readable_ink,
    set_ticks,
    style_axes,
)
from experiments.ranking import SeedGroup, VariedKey, format_brief, format_value, short_name
from experiments.statistics import Estimate
from nanogpt.config import Metric

WORDS: dict[Metric, str] = {
    "val_loss": "final val loss",
    "best_val_loss": "best val loss",
    "val_bpb": "final bits per byte",
    "best_val_bpb": "best bits per byte",
}
LABEL: dict[Metric, str] = {
    metric: words if metric.endswith("bpb") else f"{words}, nats per token" for metric, words in WORDS.items()
}
FEW = 8  # values of an axis that each have their tick
MOST_WORDS = 14  # columns of a heat map that have room for words


def to_number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class ValueScale:
    """Positions of a key's values: on a number line, or evenly spaced."""

    def __init__(self, values: Sequence[Any]) -> None:
        numbers = [to_number(value) for value in values]
        self.numeric = all(number is not None for number in numbers)
        self.values = sorted(
            {format_value(v): v for v in values}.values(), key=lambda v: v if self.numeric else sort_key(v)
        )
        found = [number for number in numbers if number is not None]
        self.log = self.numeric and min(found) > 0 and max(found) / min(found) >= WIDE

    def tick(self, value: Any) -> float:
        """Return the position on an axis of its own: the number or the index."""
        return (
            float(value)
            if self.numeric
            else float([format_value(item) for item in self.values].index(format_value(value)))
        )

    def position(self, value: Any) -> float:
        """Return the position between 0 and 1."""
        if not self.numeric:
            return self.tick(value) / max(1, len(self.values) - 1)
        low, high, at = (math.log(v) if self.log else float(v) for v in (self.values[0], self.values[-1], value))
        return (at - low) / (high - low) if high > low else 0.5


def sort_key(value: Any) -> tuple[bool, bool, float, str]:
    """Sort numbers first, then words, null last."""
    number = to_number(value)
    return value is None, number is None, number or 0.0, format_value(value)


def sensitivity_plot(found: Sequence[SeedGroup], axis: VariedKey, metric: Metric) -> Picture:
    """Return a plot of the loss over one key, with every seed and the interval of the mean."""
    scale = ValueScale([axis.value(setting) for setting in found])
    places = [scale.tick(axis.value(setting)) for setting in found]
    means = [(x, e) for x, s in zip(places, found, strict=True) if s.finished and (e := s.loss(metric))]
    seeds = [(x, loss) for x, s in zip(places, found, strict=True) if len(s.finished) > 1 for loss in s.losses(metric)]
    off = [x for x, setting in zip(places, found, strict=True) if not setting.finished]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        style_axes(axes, theme, "", plot_label(axis.key), LABEL[metric])
        if means:
            draw_means(axes, sorted(means, key=lambda mean: mean[0]), [loss for _, loss in seeds], theme, scale.numeric)
        if seeds:
            axes.plot(*zip(*seeds, strict=True), ".", color=theme.ink, markersize=4, label="each seed", zorder=4)
        if off:
            top: Style = {"transform": axes.get_xaxis_transform(), "color": theme.bad, "markeredgewidth": 2}
            axes.plot(off, [0.97] * len(off), "x", label="no finished run", **top)
        if scale.numeric:
            set_ticks(axes.xaxis, places, lambda value: f"{value:g}")
            if len(scale.values) <= FEW:
                axes.set_xticks([float(value) for value in scale.values])
        else:
            axes.set_xticks(range(len(scale.values)), [plot_label(format_brief(value), 20) for value in scale.values])
        figure.legend(loc="outside lower center", ncols=4, frameon=False, labelcolor=theme.ink)

    return make_picture("sensitivity", f"{WORDS[metric]} over {axis.key}", (8, 4.6), draw)


def draw_means(
    axes: Axes, means: Sequence[tuple[float, Estimate]], seeds: Sequence[float], theme: Theme, joined: bool
) -> None:
    """Draw means with intervals, the best as a star; outliers are only named at the top."""
    bottom, top = loss_range([estimate for _, estimate in means], seeds)
    near = [(x, estimate) for x, estimate in means if estimate.mean <= top]
    xs, losses = [x for x, _ in near], [estimate.mean for _, estimate in near]
    halves = [np.nan if estimate.half is None else estimate.half for _, estimate in near]
    style: Style = {"color": theme.cycle[0], "linewidth": 1.8, "linestyle": "-" if joined else "none", "zorder": 3}
    label = "one seed" if np.isnan(halves).all() else "mean, 95 % interval"
    if any(abs(end - estimate.mean) < (estimate.half or 0.0) for _, estimate in near for end in (bottom, top)):
        label += ", cut where it is wide"
    axes.errorbar(xs, losses, yerr=halves, marker="o", capsize=4, label=label, **style)
    best = losses.index(min(losses))
    star: Style = {"color": theme.accent, "markeredgecolor": theme.paper, "markersize": 16, "zorder": 5}
    axes.plot(xs[best], losses[best], "*", label=f"best {losses[best]:.4f}", **star)
    for x, estimate in means:
        if (x, estimate) not in near:
            look: Style = {"ha": "center", "va": "top", "fontsize": 9, "color": theme.ink}
            axes.text(x, 0.98, f"↑\n{estimate.mean:.2f}", transform=axes.get_xaxis_transform(), **look)
            axes.plot([x], [bottom], alpha=0)  # the axis reaches so far
    axes.set_ylim(bottom - 0.1 * (top - bottom), top + 0.2 * (top - bottom))


def loss_range(means: Sequence[Estimate], seeds: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and highest loss shown: all good ones, their seeds, and at most as much again of the
    intervals.
    """
    norm, far = color_range([estimate.mean for estimate in means])
    high = float(norm.vmax or 1.0)
    near = [estimate for estimate in means if not far or estimate.mean <= high]
    inside = [*(estimate.mean for estimate in near), *(loss for loss in seeds if not far or loss <= high)]
    ends = [estimate.mean + side * (estimate.half or 0.0) for estimate in near for side in (-1, 1)]
    bottom, top = min(inside), max(high, *inside)
    room = top - bottom  # two seeds can have an interval that dwarfs all differences
    return max(bottom - room, min(bottom, *ends)), min(top + room, max(top, *ends))


def heat_map(found: Sequence[SeedGroup], across: VariedKey, down: VariedKey, metric: Metric) -> Picture:
    """Return a heat map of the loss over two keys; the best is framed, cells without a loss show the state."""
    if len(ValueScale([across.value(s) for s in found]).values) < len(
        ValueScale([down.value(s) for s in found]).values
    ):
        across, down = down, across
    wide, high = (ValueScale([axis.value(s) for s in found]).values for axis in (across, down))
    columns, rows = ([format_value(value) for value in values] for values in (wide, high))
    cells = {(format_value(down.value(s)), format_value(across.value(s))): s for s in reversed(found)}
    losses = {key: e.mean for key, s in cells.items() if s.finished and (e := s.loss(metric))}
    norm, far = color_range(list(losses.values()) or [0.0])

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        style_axes(axes, theme, "", plot_label(across.key), plot_label(down.key))
        axes.grid(visible=False)
        for (y, row), (x, column) in itertools.product(enumerate(rows), enumerate(columns)):
            loss = losses.get((row, column))
            color = None if loss is None else theme.colors(norm(loss))
            draw_cell(axes, x, y, color, theme)
            if len(columns) <= MOST_WORDS:
                ink = theme.bad if (row, column) in cells else theme.faint
                words = state_word(cells.get((row, column))) if loss is None else format_cell(loss, losses.values())
                style: Style = {"ha": "center", "va": "center", "fontsize": 10 if len(columns) < 9 else 9}
                axes.text(x, y, words, color=ink if color is None else readable_ink(color), **style)
        if losses:
            row, column = min(losses, key=lambda key: losses[key])
            corner = columns.index(column) - 0.5, rows.index(row) - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=theme.accent, linewidth=3.5, zorder=5))
            add_color_bar(figure, axes, theme, norm, LABEL[metric], extend="max" if far else "neither")
        axes.set(xlim=(-0.55, len(columns) - 0.45), ylim=(-0.55, len(rows) - 0.45))
        axes.set_xticks(range(len(columns)), [plot_label(format_brief(value), 14) for value in wide])
        axes.set_yticks(range(len(rows)), [plot_label(format_brief(value), 20) for value in high])

    size = min(13.0, 3.5 + 1.0 * len(columns)), min(11.0, 2.0 + 0.6 * len(rows))
    return make_picture("heatmap", f"{WORDS[metric]} over {across.key} and {down.key}", size, draw)


def draw_cell(axes: Axes, x: int, y: int, color: Any, theme: Theme) -> None:
    """Draw a cell in the colour of its loss, or hatched."""
    look: Style = (
        {"fill": False, "hatch": "//", "edgecolor": theme.grid}
        if color is None
        else {"facecolor": color, "edgecolor": theme.paper, "linewidth": 1.5}
    )
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **look))


def format_cell(loss: float, others: Collection[float]) -> str:
    """Return the loss with as many digits as it takes to distinguish the cells."""
    return f"{loss:.3f}" if max(others) - min(others) > 0.02 else f"{loss:.4f}"


def state_word(setting: SeedGroup | None) -> str:
    """Return why a cell has no loss."""
    return "–" if setting is None else next(iter(setting.states))


def parallel_plot(found: Sequence[SeedGroup], varied: Sequence[VariedKey], metric: Metric) -> Picture:
    """Return parallel coordinates: one line per group, coloured by its loss, the best on top."""
    good = sorted((e.mean, i) for i, s in enumerate(found) if s.finished and (e := s.loss(metric)))
    scales = [ValueScale([axis.value(setting) for setting in found]) for axis in varied]
    norm, far = color_range([loss for loss, _ in good] or [0.0])

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        style_axes(axes, theme)
        axes.grid(visible=False)
        for rank, (loss, i) in reversed(list(enumerate(good))):
            aside = 0.05 * (rank / max(1, len(good) - 1) - 0.5)  # or equal values would hide each other
            heights = [scale.position(axis.value(found[i])) + aside for scale, axis in zip(scales, varied, strict=True)]
            style: Style = {"color": theme.colors(norm(loss)), "linewidth": 1.3, "alpha": 0.9, "zorder": 2}
            if rank == 0:
                style = {"color": theme.accent, "linewidth": 3.5, "zorder": 5, "label": f"best {loss:.4f}"}
            axes.plot([*heights, 1 - min(1.0, float(norm(loss)))], **style)
        for x, scale in enumerate(scales):
            for value in pick_spread(scale.values):
                box: Style = {"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
                look: Style = {"va": "center", "fontsize": 9, "color": theme.ink, "zorder": 6}
                axes.text(x + 0.04, scale.position(value), plot_label(format_brief(value), 16), bbox=box, **look)
        for x in range(len(varied) + 1):
            axes.axvline(x, color=theme.faint, linewidth=1, zorder=1)
        names = [plot_label(short_name(axis, varied), 24) for axis in varied]
        axes.set_xticks(range(len(varied) + 1), [*names, "loss"])
        axes.set_yticks([])
        axes.set(xlim=(-0.15, len(varied) + 0.02), ylim=(-0.06, 1.06))
        axes.spines[:].set_visible(False)
        if good:
            axes.legend(frameon=False, labelcolor=theme.ink, loc="lower right", bbox_to_anchor=(1, 1))
            add_color_bar(figure, axes, theme, norm, LABEL[metric], extend="max" if far else "neither")
            figure.axes[-1].invert_yaxis()  # the lowest loss is at the top of its axis

    size = min(14.0, 4.0 + 1.7 * len(varied)), 5.0
    return make_picture("parallel", f"{WORDS[metric]} over all that was varied", size, draw)


def pick_spread(values: Sequence[Any], most: int = 12) -> list[Any]:
    """Return some of many values, evenly spread, the first and last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def plot_sweep(found: Sequence[SeedGroup], varied: Sequence[VariedKey], metric: Metric) -> Picture | None:
    """Return the plot that suits the number of varied keys; None if nothing was varied."""
    if not varied or len(found) < 2:
        return None
    if len(varied) == 1:
        return sensitivity_plot(found, varied[0], metric)
    if len(varied) == 2 and is_grid(found, varied):
        return heat_map(found, varied[0], varied[1], metric)
    return parallel_plot(found, varied, metric)


def is_grid(found: Sequence[SeedGroup], varied: Sequence[VariedKey]) -> bool:
    """Return whether enough combinations of two keys exist to fill a table."""
    counts = [len({format_value(axis.value(setting)) for setting in found}) for axis in varied]
    there = len({tuple(format_value(axis.value(setting)) for axis in varied) for setting in found})
    return max(counts) <= 40 and there >= 0.4 * counts[0] * counts[1]
