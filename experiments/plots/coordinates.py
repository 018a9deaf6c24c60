"""Plot of a coordinate check: how far each part moved over the width, one line per step."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from nanogpt.tracking.plots import save_figure


def draw_coordinates(
    found: Mapping[str, Sequence[Mapping[str, list[float]]]], widths: Sequence[int], path: Path
) -> None:
    """Draw one row of panels per parametrization, one column per part; axes are logarithmic and shared."""
    parts = list(next(iter(found.values()))[0])
    figure = Figure(figsize=(3.4 * len(parts), 3.0 * len(found)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(found), len(parts), sharex=True, sharey="col", squeeze=False)
    for row, (name, models) in zip(grid, found.items(), strict=True):
        for axes, part in zip(row, parts, strict=True):
            steps = len(models[0][part])
            for step in range(steps):
                color = colormaps["viridis"](0.9 * step / max(1, steps - 1))
                moves = [model[part][step] for model in models]
                axes.loglog(widths, moves, "o-", color=color, markersize=4, label=f"step {step + 1}")
            axes.set_title(f"{name}: {part}", fontsize=10)
            axes.set_xticks(list(widths))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.3)
        row[0].set_ylabel("mean |change|", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("channels (n_embd)", fontsize=9)
    handles, labels = grid[0][0].get_legend_handles_labels()
    shown = sorted({0, len(labels) // 2, len(labels) - 1})
    grid[0][0].legend([handles[i] for i in shown], [labels[i] for i in shown], fontsize=8, frameon=False)
    save_figure(figure, path)
