"""Plot of the loss over one key: a line per value of a second key, a panel per value of a third."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from experiments.metrics import AXIS_LABELS, TITLES
from experiments.plots.theme import Picture, Style, add_figure_legend, color_range, plot_label, set_ticks
from experiments.ranking import SeedGroup
from experiments.sweep_lines import SweepLine, SweepLines, is_numeric
from nanogpt.config import Metric
from nanogpt.statistics import Estimate
from nanogpt.tracking.plots import MARKERS, Theme, style_axes

MAX_TICKS = 8  # values of an axis that each have their tick
MARGIN = 0.07  # beside the lowest and the highest value, as a share of the axis
SHIFT = 3.0  # points between the intervals of neighbouring lines
ROW = 0.07  # height of a line's row of signs above the losses, as a share of their range


def sensitivity_plot(sweep: SweepLines, metric: Metric) -> Picture | None:
    """Return a plot of the means with their intervals, and signs for all settings without; None without any mean."""
    settings = [setting for line in sweep.lines for setting in line.settings]
    means = [loss for setting in settings if (loss := final_loss(setting, metric))]
    if not means:
        return None
    seeds = [loss for setting in settings if setting.finished for loss in setting.losses(metric)]
    limits = loss_range(means, seeds)
    columns = min(3, len(sweep.panels))
    rows = -(-len(sweep.panels) // columns)

    def draw(figure: Figure, theme: Theme) -> None:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, panel in zip(grid.flat, sweep.panels, strict=False):
            lines = [line for line in sweep.lines if line.panel == panel]
            heading = plot_label(f"{', '.join(sweep.panel.label_keys)} = {panel}", 40) if sweep.panel else ""
            style_axes(axes, theme, heading)
            for line in lines:
                draw_line(axes, sweep, line, metric, limits, theme)
            set_x_axis(axes, sweep, settings)
            set_y_axis(axes, sweep, limits, theme)
        for axes in grid.flat[len(sweep.panels) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel(AXIS_LABELS[metric], color=theme.ink)
        for axes in grid[-1]:
            axes.set_xlabel(plot_label(", ".join(sweep.x.label_keys)), color=theme.ink)
        add_legend(figure, sweep, settings, means, limits, theme)

    axes = [axis for axis in (sweep.x, sweep.line, sweep.panel) if axis]
    title = f"{TITLES[metric]} over {' and '.join(', '.join(axis.label_keys) for axis in axes)}"
    return Picture("sensitivity", title, (5.2, 3.7) if columns == 1 else (6.5, 1.2 + 2.3 * rows), draw)


def final_loss(setting: SeedGroup, metric: Metric) -> Estimate | None:
    return setting.loss(metric) if setting.finished else None


def draw_line(
    axes: Axes, sweep: SweepLines, line: SweepLine, metric: Metric, limits: tuple[float, float], theme: Theme
) -> None:
    """Draw means with intervals, joined where neighbours have one and no seed diverged. Above: outliers, and signs."""
    i, numeric = sweep.labels.index(line.label), is_numeric(line.settings, sweep.x)
    color, (low, high) = theme.cycle[i], limits
    places = [float(sweep.x.value(s)) if numeric else float(x) for x, s in enumerate(line.settings)]
    found = [final_loss(setting, metric) for setting in line.settings]
    ys = [loss.mean if loss and loss.mean <= high else np.nan for loss in found]
    halves = [loss.half or np.nan if loss else np.nan for loss in found]
    bars = [np.minimum(halves, np.subtract(ys, low)), np.minimum(halves, np.subtract(high, ys))]
    look: Style = {"marker": MARKERS[i], "markersize": 5, "markeredgecolor": theme.paper, "zorder": 3}
    aside = 0.0 if np.isnan(halves).all() else SHIFT * (i - (len(sweep.labels) - 1) / 2) / 72
    shift = ScaledTranslation(aside, 0, axes.figure.dpi_scale_trans)
    beside: Style = {"transform": axes.transData + shift, "color": color}
    axes.errorbar(places, ys, yerr=bars, capsize=2.5, elinewidth=0.9, linestyle="none", **look, **beside)
    sound = [np.nan if setting.diverged else y for setting, y in zip(line.settings, ys, strict=True)]
    axes.plot(places, sound, linewidth=1.5 if numeric else 0, **beside)
    at_top: Style = {"ha": "center", "va": "center", "color": color}
    height = high + (high - low) * ROW * (i + 0.5)
    for x, y, loss, setting in zip(places, ys, found, line.settings, strict=True):
        above = f"↑{loss.mean:.2f}" if loss and np.isnan(y) else ""
        axes.text(x, height, f"{above}{state_sign(setting)}", **at_top)
        if len(sweep.lines) == 1 and loss and loss.n > 1:
            axes.plot([x] * loss.n, setting.losses(metric), ".", color=theme.ink, markersize=3, zorder=4)
    best = line.best(metric)
    at = next((i for i, setting in enumerate(line.settings) if setting is best), None)
    if at is not None:
        axes.plot(places[at], ys[at], "*", markersize=12, markeredgecolor=theme.paper, zorder=5, **beside)


def state_sign(setting: SeedGroup) -> str:
    return "×" if setting.diverged else "" if setting.finished else "?"


def set_y_axis(axes: Axes, sweep: SweepLines, limits: tuple[float, float], theme: Theme) -> None:
    """Set the limits, with rows for signs above the losses if there are any."""
    low, high = limits
    room = ROW * (high - low)
    if any(text.get_text() for text in axes.texts):
        axes.set_yticks([tick for tick in MaxNLocator(6).tick_values(low, high) if low - room <= tick <= high])
        axes.axhline(high, color=theme.faint, linewidth=0.7, linestyle=":")
        high += room * len(sweep.labels)
    axes.set_ylim(low - room, high + room / 2)


def set_x_axis(axes: Axes, sweep: SweepLines, settings: Sequence[SeedGroup]) -> None:
    """Set limits and ticks: every value if there is room, with the values of all keys that change together."""
    if not is_numeric(settings, sweep.x):
        axes.set_xticks(range(len(settings)), [plot_label(sweep.x.text(setting), 20) for setting in settings])
        return
    values = {float(sweep.x.value(setting)): sweep.x.text(setting).replace(", ", "\n") for setting in settings}
    set_ticks(axes.xaxis, list(values), lambda value: f"{value:g}")
    if len(values) <= MAX_TICKS // min(3, len(sweep.panels)):
        axes.set_xticks(list(values), list(values.values()))
        axes.minorticks_off()
    low, high = min(values), max(values)
    if axes.get_xscale() == "log":
        axes.set_xlim(low / (high / low) ** MARGIN, high * (high / low) ** MARGIN)
    else:
        axes.set_xlim(low - (high - low) * MARGIN, high + (high - low) * MARGIN)


def add_legend(
    figure: Figure,
    sweep: SweepLines,
    settings: Sequence[SeedGroup],
    means: Sequence[Estimate],
    limits: tuple[float, float],
    theme: Theme,
) -> None:
    """Add the lines, and what marks and signs mean."""
    name = ", ".join(key.rpartition(".")[2] for key in sweep.line.label_keys) if sweep.line else ""
    labels = sweep.labels if name else []
    handles = [
        Line2D([], [], color=theme.cycle[i], marker=MARKERS[i], markersize=5, label=plot_label(f"{name} = {label}", 40))
        for i, label in enumerate(labels)
    ]
    wide = any(
        loss.half and not limits[0] <= loss.mean - loss.half <= loss.mean + loss.half <= limits[1] for loss in means
    )
    bars = "mean, 95 % interval" + (", cut where it is wide" if wide else "")
    shown: list[tuple[str, str]] = [("|", bars)] if any(loss.half for loss in means) else []
    shown += [("*", "best of each line" if labels else "best")]
    signs = {state_sign(setting) for setting in settings}
    shown += [
        (marker, words)
        for sign, marker, words in (("×", "x", "diverged"), ("?", "$?$", "not finished"))
        if sign in signs
    ]
    handles += [Line2D([], [], color=theme.ink, marker=m, linestyle="none", label=words) for m, words in shown]
    add_figure_legend(figure, handles, theme, 3)


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
