"""The look of all plots, and the loss curve of a run.

Lines differ in lightness and marker, not in hue alone, so that they can be told apart in print without colours. Colours
are Okabe and Ito's, safe for colour-blind readers, and viridis, whose lightness rises steadily, for many curves.
"""

import io
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure

from nanogpt.files import write_atomic
from nanogpt.metrics_file import Row

# Matplotlib warns on a busy machine that it builds its cache of fonts.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
PlotFormat = Literal["png", "pdf", "svg"]
Array = npt.NDArray[np.float64]
Line = tuple[Array, Array]
"""x values and losses."""

POINTS = 25  # the running mean covers about 1/25 of the curve
DPI = 200
MARKERS = "osD^vPX*"
SETTINGS: dict[
    Any, Any
] = {  # figures are at most as wide as a page of a paper, so that their text has the size of a caption
    "font.size": 9.0,
    "axes.titlesize": "medium",
    "legend.fontsize": "medium",
    "pdf.fonttype": 42,  # TrueType; publishers reject Type 3 fonts
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "nanogpt",  # the same data gives the same file
}
PLOT_FORMATS: tuple[PlotFormat, ...] = ("png", "pdf", "svg")
UNDATED: dict[PlotFormat, dict[str, None]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


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
    """Neighbours differ in lightness."""
    scale: tuple[float, float]
    """The part of viridis that can be seen on it."""

    @property
    def colors(self) -> Colormap:
        """Return the colour map, low losses first."""
        return ListedColormap(colormaps["viridis"](np.linspace(self.scale[1], self.scale[0], 256)))


LIGHT = Theme(
    *("#ffffff", "#1f2328", "#8c959f", "#e4e7eb", "#b3261e", "#d1495b"),
    ("#0072b2", "#e69f00", "#1f2328", "#d55e00", "#56b4e9", "#7a5195", "#cc79a7", "#009e73"),
    (0.0, 0.88),
)
DARK = Theme(
    *("#14171c", "#e6e9ed", "#7d8792", "#2c323a", "#ff8a80", "#ff7b8f"),
    ("#4aa8e8", "#f2bb3d", "#e6e9ed", "#ff9248", "#9bd7ff", "#b392d6", "#e79cc5", "#2fc79a"),
    (0.22, 1.0),
)
Draw = Callable[[Figure, Theme], None]


def render(size: tuple[float, float], theme: Theme, draw: Draw, kind: PlotFormat = "png") -> bytes:
    """Return a plot of `size` inches as a file. Equal data gives equal bytes."""
    file = io.BytesIO()
    with rc_context(SETTINGS), warnings.catch_warnings():
        figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor=theme.paper)
        FigureCanvasAgg(figure)
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font hasn't
        draw(figure, theme)
        figure.savefig(file, format=kind, metadata=UNDATED[kind])
    return file.getvalue()


def style_axes(axes: Axes, theme: Theme, title: str = "", x: str = "", y: str = "") -> None:
    """Set title, labels, grid, and the colours of the page."""
    axes.set_facecolor(theme.paper)
    axes.set_title(title, loc="left", color=theme.ink)
    axes.set_xlabel(x, color=theme.ink)
    axes.set_ylabel(y, color=theme.ink)
    axes.tick_params(colors=theme.ink, which="both")
    axes.grid(color=theme.grid)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_color(theme.faint)
        spine.set_visible(side in ("left", "bottom"))


def plot_loss(rows: Sequence[Row], path: Path, title: str) -> None:
    """Plot the losses of a run over the step, as PNG. Raises OSError."""

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        style_axes(axes, theme, title.replace("$", r"\$"), "step", "loss, nats per token")
        draw_loss(axes, theme, *(read_line(rows, key) for key in ("loss", "val_loss")))

    path.parent.mkdir(exist_ok=True)
    write_atomic(path, render((6.5, 3.6), LIGHT, draw))


def read_line(rows: Sequence[Row], key: str) -> Line:
    """Return the steps at which a loss is known, and the losses."""
    points = [(row["step"], row[key]) for row in rows if key in row]
    return np.array([x for x, _ in points], float), np.array([loss for _, loss in points], float)


def draw_loss(axes: Axes, theme: Theme, train: Line, val: Line) -> None:
    """Draw training loss (logged steps and running mean) and validation loss, with the best marked."""
    style: dict[str, Any] = {"color": theme.cycle[0], "linewidth": 1.6}
    if len(train[0]):
        axes.plot(*train, color=theme.faint, alpha=0.5, linewidth=0.7, label="train, each logged step")
        axes.plot(train[0], smooth(train[1].tolist()), label="train, running mean", **style)
    if len(val[0]):
        style |= {"color": theme.accent, "markeredgecolor": theme.paper}
        axes.plot(*val, "o--", markersize=4.5, label="validation", **style)
        best = int(np.argmin(val[1]))
        label = f"best {val[1][best]:.4f} at {axes.get_xlabel()} {val[0][best]:,.6g}"
        axes.plot([val[0][best]], [val[1][best]], "*", markersize=13, zorder=5, label=label, color=theme.ink)
    curves = [line for line in (train, val) if len(line[0])]
    low, high = loss_limits(curves)
    axes.set_ylim(low, high)
    firsts = [losses[0] for _, losses in curves if losses[0] > high]
    if firsts:
        style = {"transform": axes.transAxes, "va": "top", "color": theme.ink, "zorder": 6}
        box = {"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5}
        axes.text(0.015, 0.985, f"↑ from {max(firsts):.4g}", bbox=box, **style)
    if curves:
        axes.legend(frameon=False, labelcolor=theme.ink, loc="upper right")


def smooth(values: Sequence[float]) -> list[float]:
    """Return an exponential running mean over about 1/POINTS of the curve, with bias correction."""
    keep = 1 - 1 / max(1.0, len(values) / POINTS)
    mean, weight, smoothed = 0.0, 0.0, list[float]()
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed


def loss_limits(curves: Sequence[Line]) -> tuple[float, float]:
    """Return limits from just below the lowest loss to the losses after a tenth of training, so that the first drop, a
    spike or a diverging curve doesn't take all the space.
    """
    if not curves:
        return 0.0, 1.0
    low = min(float(losses.min()) for _, losses in curves)
    early = [float(np.interp(0.1 * xs.max(), xs, losses)) for xs, losses in curves]
    high = max(float(np.median(early)), low + 1e-3)
    high = min(high + 0.25 * (high - low), max(high, *(float(losses[0]) for _, losses in curves)))
    margin = 0.05 * (high - low)
    return low - margin, high + margin
