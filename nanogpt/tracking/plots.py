"""Plot the loss curve of a run."""

import io
import logging
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nanogpt.files import write_atomic
from nanogpt.metrics_file import Row

# Matplotlib warns on a busy machine that it builds its cache of fonts.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
INK, FAINT, TRAIN, VAL = "#222222", "#b8c4d6", "#3b6ea8", "#d1495b"
POINTS = 25  # the running mean covers about 1/25 of the curve


def plot_loss(rows: list[Row], path: Path, title: str) -> None:
    """Plot training loss (logged steps and running mean) and validation loss, with the best marked, over the step."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    val = [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color=FAINT, linewidth=0.8, label="train, each logged step")
        axes.plot(steps, smooth(losses), color=TRAIN, linewidth=1.8, label="train, running mean")
    if val:
        steps, losses = zip(*val, strict=True)
        axes.plot(steps, losses, color=VAL, linewidth=1.8, marker="o", markersize=4, label="validation")
        best_step, best = min(val, key=lambda point: point[1])
        label = f"best {best:.4f} at step {best_step:,}"
        axes.plot([best_step], [best], "*", markersize=15, color=VAL, markeredgecolor="white", zorder=5, label=label)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.set_ylim(*axis_limits([loss for _, loss in val + train]))
    axes.grid(color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    if train or val:
        axes.legend(frameon=False)
    path.parent.mkdir(exist_ok=True)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically. Raises OSError."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomic(path, content.getvalue())


def smooth(values: tuple[float, ...]) -> list[float]:
    """Return an exponential running mean over about 1/POINTS of the curve, with bias correction."""
    keep = 1 - 1 / max(1.0, len(values) / POINTS)
    mean, weight, smoothed = 0.0, 0.0, list[float]()
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed


def axis_limits(losses: list[float]) -> tuple[float, float]:
    """Return limits from just below the lowest loss to just above the first, so that higher spikes are cut off."""
    if not losses:
        return 0.0, 1.0
    low, high = min(losses), min(max(losses), 1.1 * losses[0])
    margin = 0.05 * max(high - low, 1e-3)
    return low - margin, high + margin
