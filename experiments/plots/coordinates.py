"""Plot of a coordinate check: how far each part moved over the width, one line per step."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from nanogpt.errors import BadInput, hint, one_line
from nanogpt.files import write_atomic
from nanogpt.tracking.plots import LIGHT, MARKERS, PLOT_FORMATS, PlotFormat, Theme, render, style_axes


def check_plot_format(key: str, path: str) -> PlotFormat:
    """Return the plot format of a file, by the end of its name. Raises BadInput."""
    kind = Path(path).suffix.removeprefix(".")
    if kind not in PLOT_FORMATS:
        ends = [f".{known}" for known in PLOT_FORMATS]
        raise BadInput(f"{key}={one_line(path, 200)}: must end in {', '.join(ends)}{hint(f'.{kind}', ends)}")
    return kind


def draw_coordinates(
    found: Mapping[str, Sequence[Mapping[str, list[float]]]], widths: Sequence[int], path: Path
) -> None:
    """Draw one row of panels per parametrization, one column per part; axes are logarithmic and shared."""
    parts = list(next(iter(found.values()))[0])

    def draw(figure: Figure, theme: Theme) -> None:
        grid = figure.subplots(len(found), len(parts), sharex=True, sharey="col", squeeze=False)
        for row, (name, models) in zip(grid, found.items(), strict=True):
            for axes, part in zip(row, parts, strict=True):
                steps = len(models[0][part])
                for step in range(steps):
                    color = theme.colors(1 - step / max(1, steps - 1))
                    moves, mark = [model[part][step] for model in models], MARKERS[step % len(MARKERS)]
                    axes.loglog(widths, moves, "-", marker=mark, color=color, markersize=4, label=f"step {step + 1}")
                style_axes(axes, theme, f"{name}: {part}")
                axes.set_xticks(list(widths))
                axes.xaxis.set_major_formatter(ScalarFormatter())
                axes.xaxis.set_minor_formatter(NullFormatter())
        figure.supxlabel("channels (n_embd)", fontsize="medium")
        figure.supylabel("mean |change|", fontsize="medium")
        handles, labels = grid[0][0].get_legend_handles_labels()
        shown = sorted({0, len(labels) // 2, len(labels) - 1})
        grid[0][0].legend([handles[i] for i in shown], [labels[i] for i in shown], frameon=False)

    size = 2.3 * len(parts), 0.4 + 2.0 * len(found)
    write_atomic(path, render(size, LIGHT, draw, check_plot_format("coordinates.out", str(path))))
