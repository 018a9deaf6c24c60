"""Search space in Hydra's syntax: intervals, ranges and lists of values.

optimizer.lr=tag(log,interval(1e-4,1e-2))     log-uniform
model.dropout=interval(0,0.3)                 uniform
model.n_layer=interval(2,8)                   an integer key: 2, 3, … 8
model.n_layer=range(2,8,2)                    2, 4, 6, as in a grid
model=tiny,baby                               one of these
"""

import itertools
import math
import random
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from pydantic.fields import FieldInfo

from cli.compose import Composer, Point
from cli.overrides import MAX_POINTS, Value, check_keys, expand_values, parse_override
from cli.plugin_config import PluginSweeper
from cli.sweep_config import SweepConfig, Sweeper
from cli.sweep_keys import SWEEP_PREFIXES, SWEEPER
from nanogpt import schema
from nanogpt.errors import BadInput, one_line
from nanogpt.schema import ConfigModel

Config = TypeVar("Config", bound=ConfigModel)
SEED = "training.seed"
START_TRIES = 200
EXAMPLE = "'optimizer.lr=tag(log,interval(1e-4,1e-2))' model.n_layer=2,4,6"


@dataclass(frozen=True)
class Axis:
    """Values of one key: `choices`, or if there are none the numbers from `low` to `high`, both included."""

    key: str
    override_text: str
    """Text after `=`."""
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    whole: bool = False
    """Integers only, also `low`, `high` and `step`."""

    def text(self, value: float | str) -> str:
        """Return a value as text. Numbers have four digits, so that a run's name shows its values exactly."""
        if isinstance(value, str):
            return value
        if self.whole:
            return str(round(value))
        rounded = round(value, 10) if self.step else float(f"{value:.4g}")
        return str(min(max(rounded, self.low), self.high))

    def value(self, text: str) -> float | str:
        """Return the value that `text` names. Raises ValueError if it isn't on the axis."""
        value = text if self.choices else int(text) if self.whole else float(text)
        if isinstance(value, str):
            inside = value in self.choices
        else:
            inside = self.low <= value <= self.high and (not self.step or is_whole((value - self.low) / self.step))
        if not inside:
            raise ValueError(f"{self.key}={text} is not in {self.override_text}")
        return value

    def value_at(self, fraction: float) -> str:
        """Return the value, as text, at a fraction in [0, 1) of the axis."""
        if self.choices:
            return self.choices[int(fraction * len(self.choices))]
        if self.step or self.whole:
            step = self.step or 1
            return self.text(self.low + step * int(fraction * (round((self.high - self.low) / step) + 1)))
        return self.text(self.low + fraction * (self.high - self.low))


@dataclass(frozen=True)
class Space(Generic[Config]):
    """The values among which a search chooses; composes its points."""

    axes: tuple[Axis, ...]
    seeds: tuple[Value, ...]
    """Seeds with which every trial is trained; empty if `training.seed` isn't swept."""
    fixed: tuple[Value, ...]
    arguments: tuple[str, ...]
    """The overrides for a sweeper of a plugin: all but those of seeds."""
    exclude: tuple[str, ...]
    composer: Composer

    @property
    def keys(self) -> set[str]:
        """The keys that differ between points."""
        return {*(axis.key for axis in self.axes), *(value.key for value in self.seeds)}

    def points(self, texts: dict[str, str]) -> list[Point[Config]]:
        """Return the checked points of {key: text}, one per seed; empty if `sweep.exclude` excludes it.

        Raises BadInput.
        """
        chosen = [*self.fixed, *(parse_value(key, text) for key, text in texts.items())]
        each = [[*chosen, seed] for seed in self.seeds] or [chosen]
        keys = {*self.keys, *texts}
        points = [self.composer.compose_point(values, keys, self.exclude) for values in each]
        return [point for point in points if point is not None]

    def read_overrides(self, words: list[str]) -> dict[str, str]:
        """Return the values by key of the overrides that a plugin chose for a point. Raises BadInput."""
        parsed = [parse_override(word) for word in words]
        check_keys(self.composer.command, self.composer.kind, parsed)
        if odd := next(
            (override for override in parsed if override.key_or_group.startswith((*SWEEP_PREFIXES, "hydra"))), None
        ):
            raise BadInput(f"{one_line(odd.input_line)}: is the same for all points and can't be swept")
        fixed = {value.key for value in self.fixed}
        values = [expand_values(override, False)[0] for override in parsed if override.key_or_group not in fixed]
        return {value.key: value.text for value in values}

    def start(self) -> Point[Config]:
        """Return some valid point. Raises BadInput with the first error if none is found."""
        random_numbers, first_error = random.Random(0), None
        for count in range(START_TRIES):
            try:
                fractions = [random_numbers.random() if count else 0 for _ in self.axes]
                texts = {axis.key: axis.value_at(at) for axis, at in zip(self.axes, fractions, strict=True)}
                if points := self.points(texts):
                    return points[0]
            except BadInput as error:
                first_error = first_error or error
        raise first_error or BadInput(f"sweep.exclude: excludes all of {START_TRIES} points that were tried")


def build_space(
    composer: Composer, overrides: list[Override], settings: SweepConfig, sweeper: Sweeper | PluginSweeper
) -> Space[Any]:
    """Return the search space, after composing every choice of files. Raises BadInput."""
    chosen_by = f"{SWEEPER}={sweeper.method}"
    if given := next((key for key in ("zip", "points") if getattr(settings, key)), None):
        raise BadInput(f"sweep.{given}: is for grids; {chosen_by} chooses each key independently")
    swept = [override for override in overrides if override.is_sweep_override()]
    axes = tuple(build_axis(composer, override) for override in swept if override.key_or_group != SEED)
    seeds = tuple(seed for override in swept if override.key_or_group == SEED for seed in read_seeds(override))
    if not axes and not isinstance(sweeper, PluginSweeper):  # a plugin may have keys in its own settings
        raise BadInput(f"{chosen_by}: nothing to search; give intervals or lists, e.g. {EXAMPLE}")
    fixed = tuple(expand_values(override, False)[0] for override in overrides if not override.is_sweep_override())
    others = [override for override in overrides if override.key_or_group != SEED or not override.is_sweep_override()]
    arguments = tuple(str(override.input_line) for override in others if not override.key_or_group.startswith("hydra/"))
    space = Space(axes, seeds, fixed, arguments, settings.exclude, composer)
    files = [axis for axis in axes if axis.key in (*composer.groups, "init_from")]
    for texts in itertools.product(*(axis.choices for axis in files)):
        chosen = [parse_value(axis.key, text) for axis, text in zip(files, texts, strict=True)]
        composer.compose_files(composer.chosen_files([*fixed, *chosen]))
    return space


def parse_value(key: str, text: str) -> Value:
    """Return a value as the command line reads it."""
    return Value(key, text, parse_override(f"{key}={text}").value())


def read_seeds(override: Override) -> list[Value]:
    """Return the seeds of every trial. Raises BadInput."""
    if override.is_interval_sweep():
        raise BadInput(f"{one_line(override.input_line)}: can't be searched; a list trains every trial with each seed")
    return list({value.value: value for value in expand_values(override, True)}.values())


def build_axis(composer: Composer, override: Override) -> Axis:
    """Return the values of a swept key, each checked by itself. Raises BadInput."""
    key, text = override.key_or_group, str(override.input_line)
    field = dict(schema.iter_fields(composer.kind)).get(key)
    if key in ("hardware", "tracking") or (field and schema.change_policy(field) == "free"):
        raise BadInput(f"{one_line(text)}: does not change results, so it can't be searched")
    swept = override.value()
    if isinstance(swept, IntervalSweep | RangeSweep) and field:
        axis = numeric_axis(key, text, swept, field)
        checked = [axis.text(axis.low), axis.text(axis.high)]
    else:
        values = expand_values(override, True)
        axis = Axis(key, text.partition("=")[2], tuple(dict.fromkeys(value.text for value in values)))
        checked = list(axis.choices) if field else []
    for value in checked:
        schema.check_value(composer.kind, key, parse_value(key, value).value)
    return axis


def numeric_axis(key: str, text: str, swept: IntervalSweep | RangeSweep, field: FieldInfo) -> Axis:
    """Return the axis of an interval or a range. Raises BadInput."""
    log = "log" in swept.tags
    if odd := swept.tags - {"log"}:
        raise BadInput(f"{one_line(text)}: no such tag: {one_line(min(odd))}; allowed: log")
    step = None
    if isinstance(swept, IntervalSweep):
        low, high = float(swept.start or 0), float(swept.end or 0)
        whole = takes_integers(field)
        if whole and not (is_whole(low) and is_whole(high)):
            raise BadInput(f"{one_line(text)}: {key} is an integer, so its limits must be")
    else:
        low, high, step, whole = range_limits(text, swept)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise BadInput(f"{one_line(text)}: an interval needs two numbers, the lower one first")
    if log and (low <= 0 or (step or 1) != 1 or (step and not whole)):
        raise BadInput(f"{one_line(text)}: log needs a lower limit above 0, and no step")
    if whole:
        low, high = int(low), int(high)
    return Axis(key, text.partition("=")[2], (), low, high, step, log, whole)


def range_limits(text: str, swept: RangeSweep) -> tuple[float, float, float, bool]:
    """Return (first, last, step, whether all are integers) of a range, ascending; the end is excluded, as in a grid."""
    try:
        steps = swept.range()
        values = steps if isinstance(steps, range) else list(itertools.islice(steps, MAX_POINTS + 1))
        first, last = values[0], values[-1]
    except (HydraException, ValueError, IndexError):
        raise BadInput(f"{one_line(text)}: an empty sweep") from None
    if isinstance(steps, range):
        return min(first, last), max(first, last), abs(steps.step), True
    return round(min(first, last), 10), round(max(first, last), 10), float(abs(swept.step)), False


def takes_integers(field: FieldInfo) -> bool:
    """Return whether a key takes integers or null only."""
    kinds = get_args(field.annotation) or (field.annotation,)
    bare = [(get_args(kind) or (kind,))[0] for kind in kinds]  # Annotated[int, …] is an int
    return int in bare and float not in bare


def is_whole(number: float) -> bool:
    """Return whether a number is an integer up to rounding errors."""
    return math.isfinite(number) and abs(number - round(number)) < 1e-6
