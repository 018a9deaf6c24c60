"""What a command line asks for: one run, or the points of a sweep, each with its checked config."""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from hydra import initialize_config_dir
from hydra.core.override_parser.types import Override

from cli import config_files
from cli.compose import Composer, Point, register_schemas
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
from cli.quoting import format_override, format_value
from cli.search_space import Space, build_space
from cli.sweep_config import Search, SweepConfig, Sweeper
from cli.sweep_keys import LAUNCHER, LAUNCHER_KEYS, SWEEP_KEYS, SWEEP_PREFIXES, SWEEPER, SWEEPER_KEYS
from nanogpt.errors import BadInput
from nanogpt.schema import ConfigModel

Config = TypeVar("Config", bound=ConfigModel)


@dataclass(frozen=True)
class Sweep(Generic[Config]):
    """What a command line asks for: its points, how to run them, and the settings all points share."""

    points: list[Point[Config]]
    launcher: Launcher
    launcher_values: dict[str, Any]
    """Those of its keys that were given, without `hydra.launcher.`."""
    shared: dict[str, str]
    sweeper: Sweeper
    settings: SweepConfig
    excluded: int
    """Points that `sweep.exclude` left out."""
    sweep_keys: tuple[str, ...]
    """Keys about sweeps that were given."""
    space: Space[Config] | None = None
    """What a search chooses from; of its points, `points` has one that can be."""

    @property
    def keys_swept_in_files(self) -> set[str]:
        """Keys that files sweep."""
        return {*self.settings.grid, *(key for point in self.settings.points for key in point)}

    def check_multirun(self) -> None:
        """What is about sweeps needs `-m`. Raises BadInput."""
        if self.launcher.executor != "none":
            raise BadInput("hydra/launcher: is for sweeps; add -m, or for this run alone: nanogpt submit …")
        if given := [
            key for key in (*self.sweep_keys, *self.shared) if key.startswith((SWEEP_KEYS, SWEEPER_KEYS, SWEEPER))
        ]:
            raise BadInput(f"{given[0]}: is for sweeps; add -m")
        if self.keys_swept_in_files:
            what = f"experiment={self.shared['experiment']}" if "experiment" in self.shared else "sweep.grid"
            raise BadInput(f"{what}: is a study of several runs; add -m")


def read_configs(command: str, kind: type[Config], overrides: list[str], multirun: bool = False) -> list[Config]:
    """One checked config for every point of the sweep; one point without `-m`. Raises BadInput; creates nothing."""
    return [point.config for point in read_sweep(command, kind, overrides, multirun).points]


def read_sweep(command: str, kind: type[Config], overrides: list[str], multirun: bool = False) -> Sweep[Config]:
    """All that the command line asks for. Raises BadInput; creates nothing."""
    with initialize_config_dir(str(config_files.CONFIG_DIR), version_base="1.3"):
        asked = parse_command_line(command, kind, overrides, multirun)
        composer, space = asked.composer, None
        if asked.is_search:
            space = build_space(composer, asked.given, asked.settings)
            made, several, excluded = [space.start()], space.keys, 0
        else:
            combinations = asked.combine_values()
            several = asked.swept_keys
            made = composer.compose_points(combinations, several, asked.settings.exclude if multirun else ())
            excluded = len(combinations) - len(made)
        return Sweep(
            made,
            composer.sweep_keys.launcher(),
            composer.sweep_keys.given_under(LAUNCHER_KEYS),
            {one.key: one.text for one in asked.mine if one.key not in several} | composer.literals,
            composer.sweep_keys.sweeper(),
            asked.settings,
            excluded,
            tuple(composer.sweep_keys.given),
            space,
        )


def compose_unchecked(command: str, kind: type[ConfigModel], overrides: list[str]) -> dict[str, Any]:
    """What files and command line say of every key, together unchecked. Raises BadInput."""
    with initialize_config_dir(str(config_files.CONFIG_DIR), version_base="1.3"):
        asked = parse_command_line(command, kind, overrides, False)
        return asked.composer.flatten(asked.composer.compose_values(asked.mine))


def count_points(command: str, kind: type[ConfigModel], overrides: list[str]) -> int | None:
    """How many points a sweep has, or a few more, a hundred times faster than composing them; None for a search.

    Raises BadInput.
    """
    with initialize_config_dir(str(config_files.CONFIG_DIR), version_base="1.3"):
        asked = parse_command_line(command, kind, overrides, True)
        return None if asked.is_search else len(asked.combine_values())


@dataclass(frozen=True)
class ParsedCommand:
    """A command line with the files it chooses, before its points are composed."""

    composer: Composer
    mine: list[Value]
    """The keys of the command line that are about runs, each with its first value."""
    given: list[Override]
    """The same with all values, and the keys that files sweep."""
    listed: list[LinkedValues]
    settings: SweepConfig
    multirun: bool

    @property
    def is_search(self) -> bool:
        return self.multirun and isinstance(self.composer.sweep_keys.sweeper(), Search)

    @cached_property
    def swept(self) -> list[list[Value]]:
        """All values of each key. Raises BadInput."""
        return [expand_values(override, self.multirun) for override in self.given]

    @property
    def swept_keys(self) -> set[str]:
        """The keys in which points differ."""
        listed = {value.key for bundle in self.listed for value in bundle}
        return {values[0].key for values in self.swept if len(values) > 1} | listed

    def combine_values(self) -> list[list[Value]]:
        """The values of each point of a grid. Raises BadInput."""
        choices = grid_axes(self.swept, self.listed, self.settings.zip if self.multirun else ())
        check_point_count(math.prod(map(len, choices)))
        return [[value for bundle in chosen for value in bundle] for chosen in itertools.product(*choices)]


def parse_command_line(command: str, kind: type[ConfigModel], overrides: list[str], multirun: bool) -> ParsedCommand:
    """Read a command line. Raises BadInput."""
    literals, rest = split_literals(kind, keep_last(overrides))
    parsed = [expand_glob(command, kind, parse_override(text, kind)) for text in rest]
    register_schemas(command, kind)
    firsts = [first_value(override, multirun) for override in parsed]
    check_keys(command, kind, parsed)
    composer = Composer(
        command, kind, literals, {value.key: value.value for value in firsts if value.key.startswith(SWEEP_PREFIXES)}
    )
    given = [one for one in parsed if not one.key_or_group.startswith(SWEEP_PREFIXES)]
    mine = [one for one in firsts if not one.key.startswith(SWEEP_PREFIXES)]
    composer.compose_files(composer.chosen_files(mine))
    settings, listed = composer.sweep_keys.settings(), list[LinkedValues]()
    if multirun:
        grid, listed = read_file_sweeps(command, kind, {one.key for one in mine}, settings)
        given = [*given, *grid]
    return ParsedCommand(composer, mine, given, listed, settings, multirun)


def check_point_count(count: int) -> None:
    """Raises BadInput for more points than anybody means."""
    if count > MAX_POINTS:
        raise BadInput(f"-m: {count:,} points; allowed: at most {MAX_POINTS:,}")


def read_file_sweeps(
    command: str, kind: type[ConfigModel], mine: set[str], settings: SweepConfig
) -> tuple[list[Override], list[LinkedValues]]:
    """(the keys of sweep.grid that the command line, which has `mine`, leaves alone; the points of sweep.points).

    Raises BadInput.
    """
    grid = [
        expand_glob(command, kind, parse_file_values(key, values))
        for key, values in settings.grid.items()
        if key not in mine
    ]
    points = [
        [parse_override(format_override(key, value)) for key, value in point.items()] for point in settings.points
    ]
    for overrides in (grid, *points):
        check_keys(command, kind, overrides)
        if shared := [
            one.key_or_group for one in overrides if one.key_or_group.startswith((*SWEEP_PREFIXES, LAUNCHER, SWEEPER))
        ]:
            raise BadInput(f"sweep.grid, sweep.points: {shared[0]} is one for all points and can't be swept")
    return grid, [tuple(expand_values(one, False)[0] for one in overrides) for overrides in points]


def parse_file_values(key: str, values: Any) -> Override:
    """A key of sweep.grid as if it were on the command line: a list of values, or what would follow `=` there."""
    texts = [format_value(value) for value in values] if isinstance(values, list | tuple) else [str(values)]  # pyright: ignore[reportUnknownVariableType]
    return parse_override(f"{key}={','.join(texts)}")
