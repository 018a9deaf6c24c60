"""The look of plots on light and dark pages: axes, colours and labels.

Colours are Okabe and Ito's, safe for colour-blind readers, and viridis for many curves.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis as Ruler
from matplotlib.axis import XAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nanogpt.formatting import shorten

Style = dict[str, Any]

DPI = 130
WIDE = 8.0  # the ratio from which on an axis is logarithmic


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    paper: str
    ink: str
    faint: str
    grid: str
    bad: str
    accent: str
    cycle: tuple[str, ...]
    scale: tuple[float, float]
    """The part of viridis that can be seen on it."""

    @property
    def colors(self) -> Colormap:
        """Return the colour map, low losses first."""
        return ListedColormap(colormaps["viridis"](np.linspace(self.scale[1], self.scale[0], 256)))


LIGHT = Theme(
    *("#ffffff", "#1f2328", "#8c959f", "#e4e7eb", "#b3261e", "#d1495b"),
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1f2328", "#7a5195"),
    (0.0, 0.88),
)
DARK = Theme(
    *("#14171c", "#e6e9ed", "#7d8792", "#2c323a", "#ff8a80", "#ff7b8f"),
    ("#4aa8e8", "#ff9248", "#2fc79a", "#e79cc5", "#f2bb3d", "#9bd7ff", "#e6e9ed", "#b392d6"),
    (0.22, 1.0),
)


@dataclass(frozen=True)
class Picture:
    """A plot as PNG, for light and dark pages."""

    name: str
    title: str
    light: bytes
    dark: bytes


def make_picture(name: str, title: str, size: tuple[float, float], draw: Callable[[Figure, Theme], None]) -> Picture:
    return Picture(name, title, *(render(size, theme, draw) for theme in (LIGHT, DARK)))


def render(size: tuple[float, float], theme: Theme, draw: Callable[[Figure, Theme], None]) -> bytes:
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor=theme.paper)
    FigureCanvasAgg(figure)
    draw(figure, theme)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font hasn't
        figure.savefig(file, format="png")
    return file.getvalue()


def plot_label(text: str, limit: int = 60) -> str:
    """Return a text as a label: no formula in it, however many dollar signs, and shortened."""
    return shorten(text, limit).replace("$", r"\$")


def style_axes(axes: Axes, theme: Theme, title: str = "", x: str = "", y: str = "") -> None:
    """Set title, labels, grid, and the colours of the page."""
    axes.set_facecolor(theme.paper)
    axes.set_title(title, loc="left", fontsize=11, color=theme.ink)
    axes.set_xlabel(x, color=theme.ink)
    axes.set_ylabel(y, color=theme.ink)
    axes.tick_params(colors=theme.ink, which="both")
    axes.grid(color=theme.grid)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_color(theme.faint)
        spine.set_visible(side in ("left", "bottom"))


def set_ticks(axis: Ruler, values: Sequence[float], write: Callable[[float], str]) -> None:
    """Set readable ticks; switch the axis to a logarithmic scale if the values spread far."""
    positive = [value for value in values if value > 0]
    if positive and len(positive) == len(values) and max(positive) / min(positive) >= WIDE:
        scale = axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale
        scale("log", nonpositive="mask")  # a curve's point at zero would be drawn far to the left
        spread = max(positive) / min(positive)
        axis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0) if spread < 30 else (1.0, 3.0) if spread < 1000 else (1.0,))
        )
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(6))

    def text(value: float, _: int) -> str:
        return write(value)

    axis.set_major_formatter(FuncFormatter(text))


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
