"""Heat map of the loss over two keys."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.metrics import AXIS_LABELS, TITLES
from experiments.plots.theme import Picture, Style, add_color_bar, color_range, plot_label, readable_ink
from experiments.ranking import SeedGroup, VariedKey
from experiments.sweep_lines import MIN_FILLED, order_values
from nanogpt.config import Metric
from nanogpt.statistics import Estimate
from nanogpt.tracking.plots import Theme, style_axes

MAX_VALUES = 40
MAX_WORDS = 10  # columns of a heat map that have room for words


def heat_map(found: Sequence[SeedGroup], varied: Sequence[VariedKey], metric: Metric) -> Picture | None:
    """Return a heat map of the loss over two keys, the best framed; cells without a loss show the state.

    None for other numbers of keys, too many values, or if most combinations were not tried.
    """
    if len(varied) != 2:
        return None
    (rows, down), (columns, across) = sorted(
        (([axis.text(s) for s in order_values(found, axis)], axis) for axis in reversed(varied)),
        key=lambda values: len(values[0]),
    )
    cells = {(down.text(s), across.text(s)): s for s in reversed(found)}
    if len(columns) > MAX_VALUES or len(cells) < MIN_FILLED * len(rows) * len(columns):
        return None
    losses = {key: loss for key, s in cells.items() if s.finished and (loss := s.loss(metric))}
    norm, far = color_range([loss.mean for loss in losses.values()] or [0.0])
    digits = 3 if max((loss.mean for loss in losses.values()), default=0) - float(norm.vmin or 0) > 0.02 else 4
    best = next(((down.text(s), across.text(s)) for s in found if s.finished and not s.diverged), None)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        style_axes(axes, theme, "", *(plot_label(", ".join(axis.label_keys)) for axis in (across, down)))
        axes.grid(visible=False)
        for (y, row), (x, column) in product(enumerate(rows), enumerate(columns)):
            loss, setting = losses.get((row, column)), cells.get((row, column))
            color = None if loss is None else theme.colors(norm(loss.mean))
            ink = readable_ink(color) if color else theme.bad if setting else theme.faint
            words = cell_words(setting, loss, digits) if len(columns) <= MAX_WORDS else ""
            draw_cell(axes, x, y, color, theme)
            axes.text(x, y, words, ha="center", va="center", color=ink, fontsize="medium" if len(columns) < 7 else 7)
        if best:
            frame_cell(axes, columns.index(best[1]), rows.index(best[0]), theme)
        if losses:
            add_color_bar(figure, axes, theme, norm, AXIS_LABELS[metric], extend="max" if far else "neither")
        axes.set(xlim=(-0.55, len(columns) - 0.45), ylim=(-0.55, len(rows) - 0.45))
        for set_labels, values in ((axes.set_xticks, columns), (axes.set_yticks, rows)):
            set_labels(range(len(values)), [plot_label(text, 20).replace(", ", "\n") for text in values])

    size = min(7.0, 2.6 + 0.75 * len(columns)), min(7.0, 1.4 + 0.5 * len(rows))
    return Picture("heatmap", f"{TITLES[metric]} over {' and '.join(axis.key for axis in (across, down))}", size, draw)


def draw_cell(axes: Axes, x: int, y: int, color: Any, theme: Theme) -> None:
    """Draw a cell in the colour of its loss, or hatched."""
    look: Style = (
        {"fill": False, "hatch": "//", "edgecolor": theme.grid}
        if color is None
        else {"facecolor": color, "edgecolor": theme.paper, "linewidth": 1.5}
    )
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **look))


def frame_cell(axes: Axes, x: int, y: int, theme: Theme) -> None:
    """Frame a cell in two tones, so that it can be seen on any colour and without colours."""
    for color, width in ((theme.paper, 5.0), (theme.accent, 2.5)):
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=color, linewidth=width, zorder=5))


def cell_words(setting: SeedGroup | None, loss: Estimate | None, digits: int) -> str:
    """Return the loss with half its interval, and how many seeds diverged; else why there is none."""
    if setting is None or loss is None:
        return "–" if setting is None else next(iter(setting.states))
    words = [f"{loss.mean:.{digits}f}", *([f"±{loss.half:.{digits}f}"] if loss.half is not None else [])]
    return "\n".join([*words, *(["diverged"] if setting.diverged else [])])
