"""Plot of a scaling study: loss over model size at each budget, and the best size over the budget."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plots.theme import Picture, set_ticks
from experiments.scaling.fit import Parabola
from experiments.scaling.laws import Optimum
from nanogpt.formatting import format_count
from nanogpt.tracking.plots import MARKERS, Theme, style_axes


def scaling_plot(
    curves: Sequence[Parabola], line: tuple[float, float] | None, ahead: Optimum, spread: tuple[float, float]
) -> Picture:
    """Return two panels. `line` is the power law through the minima, `ahead` the prediction, `spread` its interval."""

    def draw(figure: Figure, theme: Theme) -> None:
        left, right = figure.subplots(1, 2)
        style_axes(left, theme, "Loss of models trained for the same FLOPs", "parameters", "val loss, nats per token")
        style_axes(right, theme, "Best size of a budget", "training FLOPs", "parameters")
        for i, curve in enumerate(curves):
            color = theme.colors(1 - i / max(1, len(curves) - 1))
            draw_budget(left, curve, theme, color=color, marker=MARKERS[i % len(MARKERS)])
            if best := curve.optimum:
                draw_optimum(right, best.flops, best.n_params, theme, color)
        sizes = [run.n_params for curve in curves for run in curve.runs]
        set_ticks(left.xaxis, sizes, format_count, wide=1)
        left.legend(frameon=False, labelcolor=theme.ink)
        minima = [curve.optimum for curve in curves if curve.optimum]
        if line is not None:
            ends = np.array([min(best.flops for best in minima) / 1.5, ahead.flops * 1.5])
            label = f"through the minima: N ~ C^{line[0]:.2f}"
            right.plot(ends, 10 ** line[1] * ends ** line[0], color=theme.ink, linewidth=1.2, label=label, zorder=2)
        bars = [[max(0.0, ahead.n_params - spread[0])], [max(0.0, spread[1] - ahead.n_params)]]
        look: dict[str, Any] = {"fmt": "D", "color": theme.accent, "capsize": 4, "zorder": 4}
        label = f"L(N, D) at {ahead.flops:.2g} FLOPs, 90 % interval"
        right.errorbar([ahead.flops], [ahead.n_params], yerr=bars, label=label, **look)
        right.set_xscale("log")
        set_ticks(right.yaxis, [*sizes, *spread], format_count, wide=1)
        right.legend(frameon=False, labelcolor=theme.ink)

    return Picture("scaling", "loss over model size, and the best size of each budget", (7.0, 3.4), draw)


def draw_budget(axes: Axes, curve: Parabola, theme: Theme, **look: Any) -> None:
    """Draw the runs of one budget, their parabola, and its minimum."""
    sizes = [run.n_params for run in curve.runs]
    losses = [run.loss for run in curve.runs]
    axes.plot(sizes, losses, linestyle="none", markersize=4.5, label=f"{curve.flops:.2g} FLOPs", zorder=3, **look)
    inside = np.geomspace(min(sizes) / 1.1, max(sizes) * 1.1, 200)
    axes.plot(inside, curve.loss(inside), color=look["color"], linewidth=1.2, zorder=2)
    if best := curve.optimum:
        draw_optimum(axes, best.n_params, best.loss, theme, look["color"])


def draw_optimum(axes: Axes, x: float, y: float, theme: Theme, color: Any) -> None:
    axes.plot([x], [y], "*", markersize=13, color=color, markeredgecolor=theme.paper, zorder=5)
