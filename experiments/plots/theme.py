"""Parts of plots: pictures, labels, ticks and colour bars."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis as Ruler
from matplotlib.axis import XAxis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nanogpt.formatting import shorten
from nanogpt.tracking import plots
from nanogpt.tracking.plots import LIGHT, Draw, PlotFormat, Theme

Style = dict[str, Any]

WIDE = 8.0  # the ratio from which on an axis is logarithmic


@dataclass(frozen=True)
class Picture:
    """A plot, drawn when a file of it is written."""

    name: str
    title: str
    size: tuple[float, float]
    """Width and height in inches."""
    draw: Draw

    @cached_property
    def light(self) -> bytes:
        return self.render("png")

    def render(self, kind: PlotFormat, theme: Theme = LIGHT) -> bytes:
        return plots.render(self.size, theme, self.draw, kind)


def plot_label(text: str, limit: int = 60) -> str:
    """Return a text as a label: no formula in it, however many dollar signs, and shortened."""
    return shorten(text, limit).replace("$", r"\$")


def set_ticks(axis: Ruler, values: Sequence[float], write: Callable[[float], str], wide: float = WIDE) -> None:
    """Set readable ticks; switch the axis to a logarithmic scale if the values spread by a factor of `wide`."""
    spread = max(values) / min(values) if values and min(values) > 0 else 0.0
    if spread >= wide:
        scale = axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale
        scale("log", nonpositive="mask")  # a curve's point at zero would be drawn far to the left
        axis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0) if spread < 30 else (1.0, 3.0) if spread < 1000 else (1.0,))
        )
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(6))

    def text(value: float, _: int) -> str:
        return write(value)

    axis.set_major_formatter(FuncFormatter(text))


def add_figure_legend(figure: Figure, handles: Sequence[Artist], theme: Theme, most: int) -> None:
    """Add a legend below the axes, with as many columns as fit into the figure, at most `most`."""
    for columns in range(most, 0, -1):
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, labelcolor=theme.ink
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def add_color_bar(
    figure: Figure, axes: Axes | Sequence[Axes], theme: Theme, norm: Normalize, label: str, **how: Any
) -> None:
    bar = figure.colorbar(ScalarMappable(norm, theme.colors), ax=axes, **how)
    bar.set_label(label, color=theme.ink)
    bar.ax.tick_params(colors=theme.ink)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def color_range(losses: Sequence[float]) -> tuple[Normalize, bool]:
    """Return the range of colours, from the best loss to the end of the good ones so that an outlier doesn't take all
    colours; and whether there is an outlier.
    """
    low, high = min(losses), max(losses)
    cut = low + 4 * (float(np.median(losses)) - low)
    far = len(losses) > 2 and cut > low and high > cut
    return Normalize(low, cut if far else max(high, low + 0.01)), far


def readable_ink(color: Any) -> str:
    """Return black or white, whichever is readable on a colour."""
    red, green, blue = to_rgb(color)
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"
