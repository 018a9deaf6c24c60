"""Parallel coordinates of a sweep over many keys."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from experiments.metrics import AXIS_LABELS, TITLES
from experiments.plots.theme import WIDE, Picture, Style, add_color_bar, color_range, plot_label
from experiments.ranking import SeedGroup, VariedKey, short_name
from experiments.sweep_lines import is_numeric, order_values
from nanogpt.config import Metric
from nanogpt.tracking.plots import Theme, style_axes

ROOM = 0.06  # between two values beside an axis, as a share of its height


def find_heights(found: Sequence[SeedGroup], axis: VariedKey) -> dict[str, float]:
    """Return the position between 0 and 1 of each value of a key: on a number line, or evenly spaced."""
    ordered = order_values(found, axis)
    texts = [axis.text(setting) for setting in ordered]
    places = [float(i) for i in range(len(texts))]
    if is_numeric(found, axis):
        places = [float(axis.value(setting)) for setting in ordered]
        if places[0] > 0 and places[-1] / places[0] >= WIDE:
            places = [math.log(place) for place in places]
    low, spread = places[0], places[-1] - places[0]
    return {text: (place - low) / spread if spread else 0.5 for text, place in zip(texts, places, strict=True)}


def parallel_plot(found: Sequence[SeedGroup], varied: Sequence[VariedKey], metric: Metric) -> Picture:
    """Return parallel coordinates: one line per group, coloured by its loss, the best on top."""
    good = sorted((e.mean, i) for i, s in enumerate(found) if s.finished and (e := s.loss(metric)))
    heights = [find_heights(found, axis) for axis in varied]
    norm, far = color_range([loss for loss, _ in good] or [0.0])

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        style_axes(axes, theme)
        axes.grid(visible=False)
        for rank, (loss, i) in reversed(list(enumerate(good))):
            aside = 0.05 * (rank / max(1, len(good) - 1) - 0.5)  # or equal values would hide each other
            ys = [places[axis.text(found[i])] + aside for places, axis in zip(heights, varied, strict=True)]
            style: Style = {"color": theme.colors(norm(loss)), "linewidth": 1.3, "alpha": 0.9, "zorder": 2}
            if rank == 0:
                style = {"color": theme.accent, "linewidth": 3.5, "zorder": 5, "label": f"best {loss:.4f}"}
            axes.plot([*ys, 1 - min(1.0, float(norm(loss)))], **style)
        for x, places in enumerate(heights):
            for text in pick_apart(places):
                box: Style = {"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
                look: Style = {"va": "center", "fontsize": "small", "color": theme.ink, "zorder": 6}
                axes.text(x + 0.04, places[text], plot_label(text, 16), bbox=box, **look)
        for x in range(len(varied) + 1):
            axes.axvline(x, color=theme.faint, linewidth=1, zorder=1)
        names = [plot_label(short_name(axis, varied), 24) for axis in varied]
        axes.set_xticks(range(len(varied) + 1), [*names, "loss"])
        axes.set_yticks([])
        axes.set(xlim=(-0.15, len(varied) + 0.02), ylim=(-0.06, 1.06))
        axes.spines[:].set_visible(False)
        if good:
            axes.legend(frameon=False, labelcolor=theme.ink, loc="lower right", bbox_to_anchor=(1, 1))
            add_color_bar(figure, axes, theme, norm, AXIS_LABELS[metric], extend="max" if far else "neither")
            figure.axes[-1].invert_yaxis()  # the lowest loss is at the top of its axis

    size = min(7.0, 3.0 + 1.0 * len(varied)), 3.6
    return Picture("parallel", f"{TITLES[metric]} over all that was varied", size, draw)


def pick_apart(places: Mapping[str, float]) -> list[str]:
    """Return the labels that have room beside an axis, the first among them."""
    chosen: list[str] = []
    for text, place in places.items():
        if not chosen or place - places[chosen[-1]] >= ROOM:
            chosen.append(text)
    return chosen
