"""A sweep as lines: the loss over one key, a line per value of a second key, a panel per value of a third."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product, takewhile
from typing import Any

from experiments.ranking import SeedGroup, VariedKey
from nanogpt.config import Metric
from nanogpt.formatting import format_value
from nanogpt.metrics_file import as_number

MAX_LINES, MAX_PANELS = 8, 6
MIN_FILLED = 0.4  # share of the combinations of values that were tried


@dataclass(frozen=True)
class SweepLine:
    """Settings that differ in one key, ordered by it."""

    panel: str
    """Values of the third key; empty without one."""
    label: str
    """Values of the second key; empty without one."""
    settings: tuple[SeedGroup, ...]

    def best(self, metric: Metric) -> SeedGroup | None:
        """Return the setting with the lowest mean loss; None if no run is finished or all diverged."""
        losses = [(loss.mean, i) for i, s in enumerate(self.settings) if is_stable(s) and (loss := s.loss(metric))]
        return self.settings[min(losses)[1]] if losses else None

    @property
    def highest_stable(self) -> SeedGroup | None:
        """Return the finished setting with the highest value at which, and below which, no seed diverged."""
        below = list(takewhile(lambda setting: not setting.diverged, self.settings))
        return next((setting for setting in reversed(below) if is_stable(setting)), None)

    @property
    def first_diverged(self) -> SeedGroup | None:
        """Return the setting with the lowest value at which a seed diverged."""
        return next((setting for setting in self.settings if setting.diverged), None)


@dataclass(frozen=True)
class SweepLines:
    """The lines of a sweep, and the keys of its axis, lines and panels."""

    x: VariedKey
    line: VariedKey | None
    panel: VariedKey | None
    lines: tuple[SweepLine, ...]

    @property
    def panels(self) -> list[str]:
        return list(dict.fromkeys(line.panel for line in self.lines))

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(line.label for line in self.lines))


def is_stable(setting: SeedGroup) -> bool:
    """Return whether a run is finished and no seed diverged."""
    return bool(setting.finished) and not setting.diverged


def is_numeric(found: Sequence[SeedGroup], axis: VariedKey) -> bool:
    return all(as_number(axis.value(setting)) is not None for setting in found)


def order_values(found: Sequence[SeedGroup], axis: VariedKey) -> list[SeedGroup]:
    """Return one setting for each value of a key: numbers first, by size, then words, null last."""

    def sort_key(setting: SeedGroup) -> tuple[bool, bool, float, str]:
        value: Any = axis.value(setting)
        number = as_number(value)
        return value is None, number is None, number or 0.0, format_value(value)

    return sorted({axis.text(setting): setting for setting in reversed(found)}.values(), key=sort_key)


def split_into_lines(found: Sequence[SeedGroup], varied: Sequence[VariedKey]) -> SweepLines | None:
    """Return the lines over a learning rate, or else the number with most values; None for more than three keys, too
    many lines, or if most combinations were not tried. `found` has the best first.
    """
    counts = {axis: len(order_values(found, axis)) for axis in varied}
    numeric = [axis for axis in varied if is_numeric(found, axis)]
    if len(found) < 2 or not 1 <= len(varied) <= 3 or not (numeric or len(varied) == 1):
        return None
    x = max(numeric or varied, key=lambda axis: (axis.key.endswith("lr"), counts[axis]))
    line, panel = (*sorted((axis for axis in varied if axis != x), key=lambda axis: -counts[axis]), None, None)[:2]
    if (line and counts[line] > MAX_LINES) or (panel and counts[panel] > MAX_PANELS):
        return None
    cells = {tuple(axis.text(s) if axis else "" for axis in (panel, line, x)): s for s in reversed(found)}
    texts = [[axis.text(s) for s in order_values(found, axis)] if axis else [""] for axis in (panel, line, x)]
    lines: list[SweepLine] = []
    for first, second in product(*texts[:2]):
        settings = [cells[first, second, value] for value in texts[2] if (first, second, value) in cells]
        lines += [SweepLine(first, second, tuple(settings))] if settings else []
    filled = len(cells) >= MIN_FILLED * len(lines) * len(texts[2])
    return SweepLines(x, line, panel, tuple(lines)) if filled else None
