"""What a search chooses from, in Hydra's words: intervals, ranges and lists of values.

optimizer.lr=tag(log,interval(1e-4,1e-2))     any number between, as likely in each decade
model.dropout=interval(0,0.3)                 any number between
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
from cli.overrides import MAX_POINTS, Value, expand_values, parse_override
from cli.sweep_config import SweepConfig
from nanogpt import schema
from nanogpt.errors import BadInput, one_line
from nanogpt.schema import ConfigModel

Config = TypeVar("Config", bound=ConfigModel)
SEED = "training.seed"
START_TRIES = 200
EXAMPLE = "'optimizer.lr=tag(log,interval(1e-4,1e-2))' model.n_layer=2,4,6"


@dataclass(frozen=True)
class Axis:
    """What one key may be: one of `choices`, or if there are none a number from `low` to `high`, both of them too."""

    key: str
    override_text: str
    """As typed after `=`."""
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    whole: bool = False
    """Integers only; the limits and the step are too."""

    def text(self, value: float | str) -> str:
        """A value as one would type it. Numbers have four digits, so that a run's name says all of its values."""
        if isinstance(value, str):
            return value
        if self.whole:
            return str(round(value))
        rounded = round(value, 10) if self.step else float(f"{value:.4g}")
        return str(min(max(rounded, self.low), self.high))

    def value(self, text: str) -> float | str:
        """The other way round. Raises ValueError for what isn't on the axis."""
        value = text if self.choices else int(text) if self.whole else float(text)
        if isinstance(value, str):
            inside = value in self.choices
        else:
            inside = self.low <= value <= self.high and (not self.step or is_whole((value - self.low) / self.step))
        if not inside:
            raise ValueError(f"{self.key}={text} is not in {self.override_text}")
        return value

    def value_at(self, share: float) -> str:
        """The value, as text, at a share in [0, 1) of the way from the first to the last."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        if self.step or self.whole:
            step = self.step or 1
            return self.text(self.low + step * int(share * (round((self.high - self.low) / step) + 1)))
        return self.text(self.low + share * (self.high - self.low))


@dataclass(frozen=True)
class Space(Generic[Config]):
    """All that a search may choose, and the points that come of it."""

    axes: tuple[Axis, ...]
    seeds: tuple[Value, ...]
    """Seeds with which every choice is trained; none when `training.seed` isn't swept."""
    fixed: tuple[Value, ...]
    exclude: tuple[str, ...]
    composer: Composer

    @property
    def keys(self) -> set[str]:
        """The keys that differ between points."""
        return {*(axis.key for axis in self.axes), *(value.key for value in self.seeds)}

    def points(self, texts: dict[str, str]) -> list[Point[Config]]:
        """The checked point of a choice, {key: text}; with seeds one for each. None if `sweep.exclude` leaves it out.

        Raises BadInput when it can't be.
        """
        chosen = [*self.fixed, *(parse_value(key, text) for key, text in texts.items())]
        each = [[*chosen, seed] for seed in self.seeds] or [chosen]
        made = [self.composer.compose_point(values, self.keys, self.exclude) for values in each]
        return [point for point in made if point is not None]

    def start(self) -> Point[Config]:
        """Some point that can be. Raises BadInput when none is found, with what is wrong with the first."""
        chance, wrong = random.Random(0), None
        for count in range(START_TRIES):
            try:
                made = self.points({axis.key: axis.value_at(chance.random() if count else 0) for axis in self.axes})
                if made:
                    return made[0]
            except BadInput as error:
                wrong = wrong or error
        raise wrong or BadInput(f"sweep.exclude: leaves out all of {START_TRIES} points that were tried")


def build_space(composer: Composer, asked: list[Override], settings: SweepConfig) -> Space[Any]:
    """The space of a command line and its files; every choice of files has been composed. Raises BadInput."""
    if given := next((key for key in ("zip", "points") if getattr(settings, key)), None):
        raise BadInput(f"sweep.{given}: is for grids; hydra/sweeper=optuna chooses values of each key by itself")
    swept = [one for one in asked if one.is_sweep_override()]
    axes = tuple(build_axis(composer, one) for one in swept if one.key_or_group != SEED)
    seeds = tuple(value for one in swept if one.key_or_group == SEED for value in read_seeds(one))
    if not axes:
        raise BadInput(f"hydra/sweeper=optuna: nothing to search in; give intervals or lists, e.g. {EXAMPLE}")
    fixed = tuple(expand_values(one, False)[0] for one in asked if not one.is_sweep_override())
    space = Space(axes, seeds, fixed, settings.exclude, composer)
    files = [axis for axis in axes if axis.key in (*composer.groups, "init_from")]
    for texts in itertools.product(*(axis.choices for axis in files)):
        chosen = [parse_value(axis.key, text) for axis, text in zip(files, texts, strict=True)]
        composer.compose_files(composer.chosen_files([*fixed, *chosen]))
    return space


def parse_value(key: str, text: str) -> Value:
    """A value as the command line reads it."""
    return Value(key, text, parse_override(f"{key}={text}").value())


def read_seeds(override: Override) -> list[Value]:
    """The seeds of every trial. Raises BadInput."""
    if override.is_interval_sweep():
        raise BadInput(f"{one_line(override.input_line)}: isn't searched; a list of seeds trains every trial with each")
    return list({value.value: value for value in expand_values(override, True)}.values())


def build_axis(composer: Composer, override: Override) -> Axis:
    """What a swept key may be, each value checked by itself. Raises BadInput."""
    key, text = override.key_or_group, str(override.input_line)
    field = dict(schema.iter_fields(composer.kind)).get(key)
    if key in ("hardware", "tracking") or (field and schema.change_policy(field) == "free"):
        raise BadInput(f"{one_line(text)}: can't change a result, so there is nothing to search")
    swept = override.value()
    if isinstance(swept, IntervalSweep | RangeSweep) and field:
        axis = numeric_axis(key, text, swept, field)
        checked = [axis.text(axis.low), axis.text(axis.high)]
    else:
        values = expand_values(override, True)
        axis = Axis(key, text.partition("=")[2], tuple(dict.fromkeys(value.text for value in values)))
        checked = list(axis.choices) if field else []
    for one in checked:
        schema.check_value(composer.kind, key, parse_value(key, one).value)
    return axis


def numeric_axis(key: str, text: str, swept: IntervalSweep | RangeSweep, field: FieldInfo) -> Axis:
    """An interval or a range. Raises BadInput."""
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
    """(first, last, step, whether all are integers) of a range, in rising order; the end isn't in it, as in a grid."""
    try:
        found = swept.range()
        values = found if isinstance(found, range) else list(itertools.islice(found, MAX_POINTS + 1))
        first, last = values[0], values[-1]
    except (HydraException, ValueError, IndexError):
        raise BadInput(f"{one_line(text)}: an empty sweep") from None
    if isinstance(found, range):
        return min(first, last), max(first, last), abs(found.step), True
    return round(min(first, last), 10), round(max(first, last), 10), float(abs(swept.step)), False


def takes_integers(field: FieldInfo) -> bool:
    """Whether a key is an integer, or null."""
    kinds = get_args(field.annotation) or (field.annotation,)
    bare = [(get_args(kind) or (kind,))[0] for kind in kinds]  # Annotated[int, …] is an int
    return int in bare and float not in bare


def is_whole(number: float) -> bool:
    """Whether a number is an integer, but for rounding."""
    return math.isfinite(number) and abs(number - round(number)) < 1e-6
