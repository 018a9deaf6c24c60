"""Plot of a scaling study: loss over model size at each budget, and the best size over the budget."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.scaling.fit import Parabola
from experiments.scaling.laws import Optimum
from nanogpt.formatting import format_count
from nanogpt.tracking.plots import save_figure

INK, LINE, NEXT = "#222222", "#3b6ea8", "#d1495b"


def draw_scaling(
    curves: Sequence[Parabola],
    line: tuple[float, float] | None,
    ahead: Optimum,
    spread: tuple[float, float],
    path: Path,
) -> None:
    """Draw two panels. `line` is the power law through the minima, `ahead` the prediction, `spread` its interval."""
    figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.set_xscale("log")
    right.set_xscale("log")
    colors = [colormaps["viridis"](0.85 * i / max(1, len(curves) - 1)) for i in range(len(curves))]
    for curve, color in zip(curves, colors, strict=True):
        draw_budget(left, curve, color)
    set_count_ticks(left.xaxis)
    label_axes(left, "Loss of models trained for the same FLOPs", "parameters", "validation loss, nats per token")
    minima = [(curve.optimum, color) for curve, color in zip(curves, colors, strict=True) if curve.optimum]
    for best, color in minima:
        right.plot([best.flops], [best.n_params], "*", markersize=15, color=color, markeredgecolor="white", zorder=5)
    if line is not None:
        ends = np.array([min(best.flops for best, _ in minima) / 1.5, ahead.flops * 1.5])
        label = f"through the minima: N ~ C^{line[0]:.2f}"
        right.plot(ends, 10 ** line[1] * ends ** line[0], color=LINE, linewidth=1.5, label=label, zorder=2)
    down, up = ahead.n_params - spread[0], spread[1] - ahead.n_params
    bars = [[max(0.0, down)], [max(0.0, up)]]
    label = f"L(N, D) at {ahead.flops:.2g} FLOPs, 90 % interval"
    right.errorbar([ahead.flops], [ahead.n_params], yerr=bars, fmt="D", color=NEXT, capsize=4, label=label, zorder=4)
    right.set_yscale("log")
    set_count_ticks(right.yaxis)
    label_axes(right, "Best size of a budget", "training FLOPs", "parameters")
    save_figure(figure, path)


def draw_budget(axes: Axes, curve: Parabola, color: tuple[float, float, float, float]) -> None:
    """Draw the runs of one budget, their parabola, and its minimum."""
    sizes = [run.n_params for run in curve.runs]
    losses = [run.loss for run in curve.runs]
    axes.plot(sizes, losses, "o", color=color, markersize=5, label=f"{curve.flops:.2g} FLOPs", zorder=3)
    inside = np.geomspace(min(sizes) / 1.1, max(sizes) * 1.1, 200)
    axes.plot(inside, curve.loss(inside), color=color, linewidth=1.5, zorder=2)
    if best := curve.optimum:
        at = [best.n_params], [best.loss]
        axes.plot(*at, "*", markersize=15, color=color, markeredgecolor="white", zorder=5)


def set_count_ticks(axis: Axis) -> None:
    """Write numbers of parameters as 20k, 1M."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(format_tick))
    axis.set_minor_formatter(NullFormatter())


def format_tick(value: float, _: int) -> str:
    return format_count(value)


def label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#eeeeee", which="both")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
