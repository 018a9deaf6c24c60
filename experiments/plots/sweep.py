"""The plots of the loss over what was varied."""

from collections.abc import Collection, Sequence

from experiments.plots.heatmap import heat_map
from experiments.plots.parallel import parallel_plot
from experiments.plots.sensitivity import sensitivity_plot
from experiments.plots.theme import Picture
from experiments.ranking import SeedGroup, VariedKey
from experiments.sweep_lines import SweepLines
from nanogpt.config import Metric, PlotName


def plot_sweep(
    found: Sequence[SeedGroup],
    varied: Sequence[VariedKey],
    lines: SweepLines | None,
    metric: Metric,
    wanted: Collection[PlotName],
) -> list[Picture]:
    """Return the `wanted` plots that can be drawn; auto: lines and a heat map, or else parallel coordinates."""
    if len(found) < 2 or not varied:
        return []
    pictures = [sensitivity_plot(lines, metric) if lines else None, heat_map(found, varied, metric)]
    auto = "auto" in wanted
    if "parallel" in wanted or (auto and not any(pictures)):
        pictures.append(parallel_plot(found, varied, metric))
    return [picture for picture in pictures if picture and (auto or picture.name in wanted)]
