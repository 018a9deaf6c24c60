"""Read a command line: one run, or the points of a sweep, each with its checked config."""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from hydra.core.override_parser.types import Override

from cli.compose import Composer, Point, initialize_hydra, register_schemas
from cli.grid import LinkedValues, grid_axes
from cli.launcher_config import Launcher
from cli.overrides import (
    MAX_POINTS,
    Value,
    check_keys,
    expand_glob,
    expand_values,
    first_value,
    keep_last,
    parse_override,
    split_literals,
)
from cli.plugin_config import PluginLauncher, PluginSweeper
from cli.quoting import format_for_hydra, format_override
from cli.search_space import Space, build_space
from cli.sweep_config import Asha, Search, SweepConfig, Sweeper, quote_precision
from cli.sweep_keys import LAUNCHER, LAUNCHER_KEYS, SWEEP_KEYS, SWEEP_PREFIXES, SWEEPER, SWEEPER_KEYS
from nanogpt.errors import BadInput
from nanogpt.schema import ConfigModel

Config = TypeVar("Config", bound=ConfigModel)


@dataclass(frozen=True)
class Sweep(Generic[Config]):
    """A command line, read: its points, how to run them, and the settings that all points share."""

    points: list[Point[Config]]
    launcher: Launcher | PluginLauncher
    launcher_values: dict[str, Any]
    """Keys of the launcher on the command line, without `hydra.launcher.`."""
    shared: dict[str, str]
    """Other keys on the command line that are the same for all points, as text."""
    sweeper: Sweeper | PluginSweeper
    settings: SweepConfig
    excluded: int
    """Number of points that `sweep.exclude` excluded."""
    sweep_keys: tuple[str, ...]
    """Keys about sweeps on the command line."""
    space: Space[Config] | None = None
    """Space of a search; then `points` has a single example."""

    @property
    def keys_swept_in_files(self) -> set[str]:
        """Keys that are swept in files."""
        return {*self.settings.grid, *(key for point in self.settings.points for key in point)}

    def check_multirun(self) -> None:
        """Raise BadInput for keys about sweeps without `-m`."""
        if self.launcher.executor != "none":
            raise BadInput("hydra/launcher: is for sweeps; add -m, or for this run alone: nanogpt submit …")
        about_sweeps = (SWEEP_KEYS, SWEEPER_KEYS, SWEEPER)
        if given := [key for key in (*self.sweep_keys, *self.shared) if key.startswith(about_sweeps)]:
            raise BadInput(f"{given[0]}: is for sweeps; add -m")
        if self.keys_swept_in_files:
            what = f"experiment={self.shared['experiment']}" if "experiment" in self.shared else "sweep.grid"
            raise BadInput(f"{what}: is a study of several runs; add -m")


def read_configs(command: str, kind: type[Config], overrides: list[str], multirun: bool = False) -> list[Config]:
    """Return the checked config of every point; without `-m` there is one. Raises BadInput. Creates nothing."""
    return [point.config for point in read_sweep(command, kind, overrides, multirun).points]


def read_sweep(command: str, kind: type[Config], overrides: list[str], multirun: bool = False) -> Sweep[Config]:
    """Read a command line. Raises BadInput. Creates nothing."""
    with initialize_hydra():
        parsed = parse_command_line(command, kind, overrides, multirun)
        composer, settings, space = parsed.composer, parsed.settings, None
        if parsed.is_search:
            space = build_space(composer, parsed.overrides, settings, composer.sweep_keys.sweeper())
            points, swept, excluded = [space.start()], space.keys, 0
        else:
            combinations = parsed.combine_values()
            swept = parsed.swept_keys
            points = composer.compose_points(combinations, swept, settings.exclude if multirun else ())
            excluded = len(combinations) - len(points)
        return Sweep(
            points=points,
            launcher=composer.sweep_keys.launcher(),
            launcher_values=composer.sweep_keys.given_under(LAUNCHER_KEYS),
            shared={first.key: first.text for first in parsed.firsts if first.key not in swept} | composer.literals,
            sweeper=composer.sweep_keys.sweeper(),
            settings=composer.sweep_keys.settings(),  # again: of all files that the points chose
            excluded=excluded,
            sweep_keys=tuple(composer.sweep_keys.given),
            space=space,
        )


def compose_unchecked(command: str, kind: type[ConfigModel], overrides: list[str]) -> dict[str, Any]:
    """Return the value of every key from files and command line, not validated together. Raises BadInput."""
    with initialize_hydra():
        parsed = parse_command_line(command, kind, overrides, False)
        return parsed.composer.flatten(parsed.composer.compose_values(parsed.firsts))


def count_points(command: str, kind: type[ConfigModel], overrides: list[str]) -> int | None:
    """Return the number of points before exclusions, without composing them; None for a search. Raises BadInput."""
    with initialize_hydra():
        parsed = parse_command_line(command, kind, overrides, True)
        return None if parsed.is_search else len(parsed.combine_values())


@dataclass(frozen=True)
class ParsedCommand:
    """A command line with the files it chooses, before its points are composed."""

    composer: Composer
    firsts: list[Value]
    """Overrides on the command line without those about sweeps, each with its first value."""
    overrides: list[Override]
    """These overrides with all values, and the keys of sweep.grid."""
    listed: list[LinkedValues]
    """The points of sweep.points."""
    settings: SweepConfig
    multirun: bool

    @property
    def is_search(self) -> bool:
        sweeper = self.composer.sweep_keys.sweeper()
        chooses = sweeper.search if isinstance(sweeper, Asha) else isinstance(sweeper, Search | PluginSweeper)
        return self.multirun and bool(chooses)

    @cached_property
    def swept(self) -> list[list[Value]]:
        """All values of each override. Raises BadInput."""
        return [expand_values(override, self.multirun) for override in self.overrides]

    @property
    def swept_keys(self) -> set[str]:
        """The keys with more than one value."""
        listed = {value.key for bundle in self.listed for value in bundle}
        return {values[0].key for values in self.swept if len(values) > 1} | listed

    def combine_values(self) -> list[list[Value]]:
        """Return the values of each point of a grid. Raises BadInput."""
        axes = grid_axes(self.swept, self.listed, self.settings.zip if self.multirun else ())
        if (count := math.prod(map(len, axes))) > MAX_POINTS:
            raise BadInput(f"-m: {count:,} points; allowed: at most {MAX_POINTS:,}")
        return [[value for linked in point for value in linked] for point in itertools.product(*axes)]


def parse_command_line(command: str, kind: type[ConfigModel], overrides: list[str], multirun: bool) -> ParsedCommand:
    """Parse a command line and compose the files of its first point. Raises BadInput."""
    literals, rest = split_literals(kind, keep_last(overrides))
    parsed = [expand_glob(command, kind, parse_override(quote_precision(text), kind)) for text in rest]
    register_schemas(command, kind)
    firsts = [first_value(override, multirun) for override in parsed]
    check_keys(command, kind, parsed)
    about_sweeps = {first.key: first.value for first in firsts if first.key.startswith(SWEEP_PREFIXES)}
    composer = Composer(command, kind, literals, about_sweeps)
    parsed = [override for override in parsed if override.key_or_group not in about_sweeps]
    firsts = [first for first in firsts if first.key not in about_sweeps]
    composer.compose_files(composer.chosen_files(firsts))
    settings, grid, listed = composer.sweep_keys.settings(), list[Override](), list[LinkedValues]()
    if multirun:
        grid, listed = read_file_sweeps(command, kind, {first.key for first in firsts}, settings)
    return ParsedCommand(composer, firsts, [*parsed, *grid], listed, settings, multirun)


def read_file_sweeps(
    command: str, kind: type[ConfigModel], given: set[str], settings: SweepConfig
) -> tuple[list[Override], list[LinkedValues]]:
    """Return (overrides of sweep.grid without keys in `given`, points of sweep.points). Raises BadInput."""
    grid = [
        expand_glob(command, kind, parse_file_values(key, values))
        for key, values in settings.grid.items()
        if key not in given
    ]
    points = [
        [parse_override(format_override(key, value)) for key, value in point.items()] for point in settings.points
    ]
    for overrides in (grid, *points):
        check_keys(command, kind, overrides)
        if shared := [
            one.key_or_group for one in overrides if one.key_or_group.startswith((*SWEEP_PREFIXES, LAUNCHER, SWEEPER))
        ]:
            raise BadInput(f"sweep.grid, sweep.points: {shared[0]} is the same for all points and can't be swept")
    return grid, [tuple(expand_values(one, False)[0] for one in overrides) for overrides in points]


def parse_file_values(key: str, values: Any) -> Override:
    """Return an override for a key of sweep.grid: a list of values, or the text after `=` on a command line."""
    texts = [format_for_hydra(value) for value in values] if isinstance(values, list | tuple) else [str(values)]  # pyright: ignore[reportUnknownVariableType]
    return parse_override(f"{key}={','.join(texts)}")
