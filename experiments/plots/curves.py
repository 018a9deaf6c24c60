"""Loss curves of many groups in one plot: mean over seeds, their spread, the best on top."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.plots.theme import (
    Picture,
    Style,
    add_color_bar,
    add_figure_legend,
    color_range,
    plot_label,
    set_ticks,
)
from experiments.results import RunResult
from nanogpt.config import Against
from nanogpt.formatting import format_count, format_duration
from nanogpt.tracking.plots import MARKERS, Array, Line, Theme, draw_loss, loss_limits, smooth, style_axes

MANY = 8  # curves that can have a colour and a line of the legend each
POINTS = 300  # of a curve of training steps
MARKED = 10  # points of a curve that have its marker
LABEL: dict[Against, str] = {
    "steps": "step",
    "tokens": "tokens",
    "flops": "training FLOPs",
    "time": "time in training steps",
}
WRITE: dict[Against, Callable[[float], str]] = {
    "steps": format_count,
    "tokens": format_count,
    "flops": partial(format_count, billion="G"),
    "time": lambda time: f"{time:g}s" if time < 60 else format_duration(time),
}


@dataclass(frozen=True)
class Curve:
    """Runs of one group of seeds."""

    label: str
    results: Sequence[RunResult]
    loss: float | None
    """Loss that ranks the group; None if it has no rank."""
    state: str = "finished"

    @property
    def dashes(self) -> str:
        return {"finished": "-", "diverged": ":", "failed": ":"}.get(self.state, "--")


Band = Mapping[int, tuple[float, float]]
"""Lowest and highest expected validation loss at each step."""
Drawn = tuple[Curve, list[Line], list[Line]]


def loss_curves(
    curves: Sequence[Curve], x: Against, name: str = "curves", in_nats: bool = True, band: Band = MappingProxyType({})
) -> Picture | None:
    """Return a plot of validation and training losses, `curves` sorted best first; None without any row.

    If nats per token aren't comparable, it shows bits per byte of the validation alone. A reference's band is shaded.
    """
    drawn = [part for curve in curves if any((part := both_lines(curve, x, in_nats))[1:])]
    if not drawn:
        return None
    shaded = band if x == "steps" and in_nats else {}
    title = f"loss against {LABEL[x]}{'; shaded: the band of the reference' if shaded else ''}"
    if len(curves) == 1 and len(curves[0].results) == 1 and in_nats:
        return Picture(name, title, (6.5, 3.6), partial(draw_single, curves[0].results[0], x, shaded))
    few = len(drawn) <= MANY

    def draw(figure: Figure, theme: Theme) -> None:
        panels = figure.subplots(1, 2 if in_nats else 1, sharey=True, squeeze=False)[0]
        norm, far = color_range([curve.loss for curve, _, _ in drawn if curve.loss is not None] or [0.0])
        for rank, (curve, *both) in reversed(list(enumerate(drawn))):
            style = curve_style(curve, rank, few, theme, norm)
            for axes, found in zip(panels, both, strict=False):
                draw_curve(axes, found, style, few)
        shade_band(panels[0], shaded, theme)
        ends = [float(line[0].max()) for _, val, train in drawn for line in (val or train)]
        for axes, title in zip(panels, ("Validation loss", "Training loss, smoothed"), strict=False):
            style_axes(axes, theme, title, LABEL[x])
            set_ticks(axes.xaxis, ends if x != "steps" else [0.0, *ends], WRITE[x])
            axes.yaxis.set_tick_params(labelleft=True)
        panels[0].set_ylabel("nats per token" if in_nats else "bits per byte", color=theme.ink)
        panels[0].set_ylim(*loss_limits([line for _, val, train in drawn for line in val + train]))
        if not few:
            add_color_bar(figure, panels, theme, norm, "loss used for ranking", extend="max" if far else "neither")
        add_legend(figure, drawn, few, theme, norm)

    rows = min(4, -(-len(drawn) // 2)) if few else 1
    return Picture(name, title, (7.0, 3.0 + 0.18 * rows), draw)


def both_lines(curve: Curve, x: Against, in_nats: bool) -> Drawn:
    """Return a curve with its lines of validation and of training."""
    if in_nats:
        return curve, curve_lines(curve, "val_loss", x), curve_lines(curve, "loss", x)
    return curve, curve_lines(curve, "val_bpb", x), []


def shade_band(axes: Axes, band: Band, theme: Theme) -> None:
    """Shade between the ends of a band."""
    steps = sorted(band)
    lows, highs = ([band[step][end] for step in steps] for end in (0, 1))
    axes.fill_between(steps, lows, highs, color=theme.faint, alpha=0.35, linewidth=0, zorder=1)
    if len(steps) == 1:  # has no width
        axes.vlines(steps, lows, highs, color=theme.faint, linewidth=6, alpha=0.35, zorder=1)


def draw_single(result: RunResult, x: Against, band: Band, figure: Figure, theme: Theme) -> None:
    """Draw both losses of one run in one panel."""
    axes = figure.add_subplot()
    shade_band(axes, band, theme)
    style_axes(axes, theme, "", LABEL[x], "loss, nats per token")
    both: list[Line] = []
    for rows, key in ((result.train, "loss"), (result.evals, "val_loss")):
        both.append((np.array(result.x_values(rows, x) or []), np.array([row[key] for row in rows])))
    draw_loss(axes, theme, *both)
    set_ticks(axes.xaxis, [0.0, *(float(xs.max()) for xs, _ in both if len(xs))], WRITE[x])


def curve_style(curve: Curve, rank: int, few: bool, theme: Theme, norm: Normalize) -> Style:
    """Return a colour of its own among few curves; among many that of its loss, the best bold."""
    style: Style = {"linestyle": curve.dashes, "linewidth": 1.5, "zorder": 3.0 - rank / 1000}
    if few:
        return style | {"color": theme.cycle[rank], "marker": MARKERS[rank], "markersize": 4}
    if rank == 0 and curve.loss is not None:
        return style | {"color": theme.accent, "linewidth": 2.8, "zorder": 4.0}
    if curve.loss is None:
        return style | {"color": theme.bad if curve.dashes == ":" else theme.faint, "linewidth": 1.0, "zorder": 2.0}
    return style | {"color": theme.colors(norm(curve.loss)), "linewidth": 1.0}


def draw_curve(axes: Axes, found: Sequence[Line], style: Style, few: bool) -> None:
    """Draw the mean of the seeds as far as all of them got, and their range."""
    if not found:
        return
    xs, losses = common_points(found)
    every = max(1, len(xs) // MARKED)
    first = MARKERS.find(style.get("marker", "")) * every // len(MARKERS)  # markers of neighbours are side by side
    axes.plot(xs, losses.mean(axis=0), **style, markevery=(max(0, first), every))
    if few and len(found) > 1:
        axes.fill_between(xs, losses.min(axis=0), losses.max(axis=0), color=style["color"], alpha=0.12, linewidth=0)


def common_points(found: Sequence[Line]) -> Line:
    """Return the x values that all lines cover, and the losses there, (lines, points)."""
    longest = max(found, key=lambda line: len(line[0]))[0]
    shared = longest[longest <= min(xs.max() for xs, _ in found)]
    xs = shared if len(shared) else longest[:1]
    return xs, np.stack([np.interp(xs, own, losses) for own, losses in found])


def curve_lines(curve: Curve, key: str, x: Against) -> list[Line]:
    """Return one line per run that has values."""
    found: list[Line] = []
    for result in curve.results:
        rows = result.train if key == "loss" else [row for row in result.evals if key in row]
        places = result.x_values(rows, x) if rows else None
        if places:
            xs, losses = np.array(places), np.array([row[key] for row in rows])
            found.append(thin_out(xs, losses) if key == "loss" else (xs, losses))
    return found


def thin_out(xs: Array, losses: Array) -> Line:
    """Average neighbours, then smooth."""
    if len(xs) > POINTS:
        starts = np.linspace(0, len(xs), POINTS, endpoint=False).astype(np.int64)
        sizes = np.diff(starts, append=len(xs))
        xs, losses = (np.add.reduceat(values.astype(np.float64), starts) / sizes for values in (xs, losses))
    return xs, np.array(smooth(tuple(map(float, losses))))


def add_legend(figure: Figure, drawn: Sequence[Drawn], few: bool, theme: Theme, norm: Normalize) -> None:
    """Add a legend below the panels: every curve if they are few; else the best, and the meaning of line styles."""
    top = loss_limits([line for _, val, train in drawn for line in val + train])[1]
    handles: list[Line2D] = []
    for rank, (curve, val, train) in enumerate(drawn if few else drawn[:1]):
        outside = all(float(losses[-1]) > top for _, losses in val or train)
        words = [
            curve.label,
            *([curve.state] if curve.dashes != "-" else []),
            *(["above the picture"] if outside else []),
        ]
        label = plot_label(("" if few else "best: ") + ", ".join(words), 70)
        if few or curve.loss is not None:
            handles.append(Line2D([], [], label=label, **curve_style(curve, rank, few, theme, norm)))
    for dashes, words in () if few else ((":", "failed or diverged"), ("--", "not finished")):
        if count := sum(curve.dashes == dashes for curve, _, _ in drawn):
            look: Style = {"color": theme.bad if dashes == ":" else theme.faint, "linestyle": dashes}
            handles.append(Line2D([], [], label=f"{words} ({count})", **look))
    if handles:
        add_figure_legend(figure, handles, theme, 2)
