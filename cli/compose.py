"""Compose the points of a sweep: overrides -> Hydra's compose -> plain dict -> typed config.

Launchers and sweepers are typed configs too. No class that a YAML file names is ever loaded (docs/decisions/0006).
"""

import copy
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, Generic, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cli import config_files
from cli.checks import check_hydra_settings, check_tilde, check_typed_value
from cli.config_files import check_no_yaml_bomb, choices, groups, search_overrides
from cli.grid import is_excluded
from cli.interpolation import (
    check_values,
    constant_values,
    first_error_line,
    is_constant,
    ordinary_words,
    resolve_values,
    set_value,
)
from cli.launcher_config import LAUNCHERS
from cli.overrides import Value, parse_override
from cli.plugin_config import plugin_groups, store_names, stored_configs
from cli.sweep_config import SWEEPERS, SweepConfig
from cli.sweep_keys import LAUNCHER, SWEEP_PREFIXES, SWEEPER, SweepKeys, explain_hydra_key
from nanogpt import schema
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.interop.sources import fill_from_weights
from nanogpt.schema import ConfigModel, iter_fields

Config = TypeVar("Config", bound=ConfigModel)

HORIZON = ("training.steps", "training.tokens", "training.tokens_per_param", "training.flops")


@dataclass(frozen=True)
class Point(Generic[Config]):
    """One point of a sweep."""

    config: Config
    changes: dict[str, str]
    """The swept keys with this point's values, as text."""


@dataclass(frozen=True)
class ComposedFiles:
    """A choice of files, composed by Hydra."""

    config: DictConfig
    """Without the keys about sweeps."""
    constants: dict[str, Any] | None
    """`config` as a plain dict; None if there is anything to resolve in it."""
    sweep_keys: dict[str, dict[str, Any]]
    """Values of the keys about sweeps, by prefix."""


@contextmanager
def initialize_hydra() -> Generator[None, None, None]:
    """Let Hydra find the files in conf/ while inside. Raises BadEnvironment if a plugin can't be imported."""
    stored_configs()
    if GlobalHydra.instance().is_initialized():  # inside of another call
        yield
        return
    with initialize_config_dir(str(config_files.CONFIG_DIR), version_base="1.3"):
        yield


def register_schemas(command: str, kind: type[ConfigModel]) -> None:
    """Give Hydra the default of every key, so that YAML files need only the values they choose.

    Of launchers and sweepers of plugins only their names are kept.
    """
    store_names()
    store = ConfigStore.instance()
    for group in (LAUNCHER, SWEEPER):
        for name in choices(group):
            store.repo["hydra"][group.removeprefix("hydra/")].pop(f"{name}.yaml", None)
    sweep = {"sweep": schema.default_values(SweepConfig)} if command == "train" else {}
    store.store(name=f"{command}_schema", node=schema.default_values(kind) | sweep)
    for group, kinds in ((LAUNCHER, LAUNCHERS), (SWEEPER, SWEEPERS)):
        for name, config in kinds.items():
            store.store(group=group, name=f"{name}_defaults", node=schema.default_values(config))


class Composer:
    """Composes the points of a sweep: once with Hydra for each choice of files (60 ms), then value by value."""

    def __init__(self, command: str, kind: type[Config], literals: dict[str, str], sweep_keys: dict[str, Any]) -> None:
        self.command, self.kind, self.literals = command, kind, literals
        self.sweep_keys = SweepKeys(command, sweep_keys)
        self.keys = {key for key, _ in iter_fields(kind)}
        self.groups = groups(command)
        self.ordinary = ordinary_words(kind, self.groups)
        self.composed_files: dict[tuple[str, ...], ComposedFiles] = {}
        self.printed_notes: set[str] = set()

    def compose_points(
        self, combinations: list[list[Value]], swept_keys: set[str], exclude: tuple[str, ...]
    ) -> list[Point[Any]]:
        """Return the points that are not excluded, checked. Raises BadInput naming the point."""
        points: list[Point[Any]] = []
        for number, chosen in enumerate(combinations, 1):
            try:
                point = self.compose_point(chosen, swept_keys, exclude)
            except BadInput as error:
                changes = swept_values(chosen, swept_keys)
                if not changes or str(error).startswith("sweep."):
                    raise
                words = " ".join(f"{key}={text}" for key, text in changes.items())
                raise BadInput(f"{error}; in point {number} of {len(combinations)}: {words}") from None
            points += [point] if point is not None else []
        if not points:
            raise BadInput(f"sweep.exclude: excludes all {len(combinations)} points")
        return points

    def compose_point(self, chosen: list[Value], swept_keys: set[str], exclude: tuple[str, ...]) -> Point[Any] | None:
        """Return one point, checked; None if it is excluded. Raises BadInput."""
        plain = self.compose_values(chosen)
        if exclude and is_excluded(exclude, self.condition_values(plain, chosen), parse_override):
            return None
        return Point(self.build_config(plain), swept_values(chosen, swept_keys))

    def condition_values(self, plain: dict[str, Any], chosen: list[Value]) -> dict[str, Any]:
        """Return a point's values by key, and the chosen file of each group."""
        values = self.flatten(plain)
        labels = {group: values.get(f"{group}.name") for group in self.groups}
        return labels | values | {value.key: value.text for value in chosen if value.key in self.groups}

    def flatten(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Return a point's values by key."""
        return {key: reduce(lambda part, name: part[name], key.split("."), plain) for key in self.keys}

    def chosen_files(self, chosen: list[Value]) -> tuple[str, ...]:
        """Return the files that a point chooses, as overrides."""
        given = {value.key: value.value for value in chosen}
        groups = (*self.groups, LAUNCHER, SWEEPER, *plugin_groups())
        files = [f"{value.key}={value.text}" for value in chosen if value.key in groups]
        weights = given.get("init_from", "scratch")
        if "model" in self.groups and weights not in ("scratch", "") and not given.keys() & {"model", "experiment"}:
            files.append("model=pretrained")
        return tuple(files)

    def compose_values(self, chosen: list[Value]) -> dict[str, Any]:
        """Return one point as a plain dict, not validated. Raises BadInput."""
        given = {value.key for value in chosen}
        if sum(key in given for key in HORIZON) == 1:  # replaces the horizon of the files
            chosen = [*chosen, *(Value(key, "null", None) for key in HORIZON if key not in given and key in self.keys)]
        values = [value for value in chosen if value.key in self.keys]
        for value in values:
            check_typed_value(self.kind, value)
        plain = self.set_values(self.chosen_files(chosen), values)
        if "eval.fit" in self.keys and not given & {"eval.every", "eval.fit"}:
            plain["eval"]["fit"] = True  # the interval in files suits their own length
        return plain if "schedule.warmup_steps" in given else self.shorten_warmup(plain)

    def set_values(self, files: tuple[str, ...], values: list[Value]) -> dict[str, Any]:
        """Return a choice of files, with some values set, as a plain dict. Raises BadInput."""
        base = self.compose_files(files)
        if base.constants is None or not all(is_constant(value.value) for value in values):
            composed = copy.deepcopy(base.config)
            for value in values:
                set_value(composed, value)
            return resolve_values(composed, self.keys, self.ordinary)
        plain = copy.deepcopy(base.constants)  # ten times as fast
        for value in values:
            set_in_dict(plain, value.key, value.value)
        check_values(plain, self.ordinary)
        return plain

    def shorten_warmup(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Shorten a warm-up from files that is longer than the run to a tenth of the run, and print a note once."""
        schedule, training = plain.get("schedule"), plain.get("training")
        if not isinstance(schedule, dict) or not isinstance(training, dict):
            return plain
        warmup, steps, end = schedule.get("warmup_steps"), training.get("steps"), schedule.get("decay_steps")
        tokens, batch = training.get("tokens"), training.get("batch_tokens")
        if isinstance(tokens, int) and isinstance(batch, int) and batch > 0:
            steps = -(-tokens // batch)
        if end is not None or not isinstance(warmup, int) or not isinstance(steps, int) or not warmup > steps > 0:
            return plain
        note = f"schedule.warmup_steps={warmup} of the files is longer than the run; {steps // 10} is used, a tenth"
        if note not in self.printed_notes and os.environ.get("RANK", "0") == "0":
            print(f"note: {note}", file=sys.stderr)
        self.printed_notes.add(note)
        return plain | {"schedule": schedule | {"warmup_steps": steps // 10}}

    def build_config(self, plain: dict[str, Any]) -> Any:
        """Return the typed config of a point. Raises BadInput."""
        plain = adopt_architecture(plain)
        check_values(self.literals)
        for key, text in self.literals.items():
            set_in_dict(plain, key, text)
        config = schema.from_dict(self.kind, plain)
        check_tilde(config)
        return config

    def compose_files(self, files: tuple[str, ...]) -> ComposedFiles:
        """Return a choice of files, composed once. Raises BadInput."""
        if files not in self.composed_files:
            self.composed_files[files] = self.load_files(files)
            self.sweep_keys.in_files.append(self.composed_files[files].sweep_keys)
        return self.composed_files[files]

    def load_files(self, files: tuple[str, ...]) -> ComposedFiles:
        """Compose a choice of files with Hydra. Raises BadInput."""
        composed = run_hydra_compose(self.command, files)
        sweep_keys: dict[str, dict[str, Any]] = {}
        for prefix in SWEEP_PREFIXES:
            values = OmegaConf.select(composed, prefix.rstrip("."))
            sweep_keys[prefix] = resolve_values(values, self.keys, self.ordinary) if values is not None else {}
        with open_dict(composed):
            del composed["hydra"]
            composed.pop("sweep", None)
        return ComposedFiles(composed, constant_values(composed, self.keys), sweep_keys)


def run_hydra_compose(command: str, files: tuple[str, ...]) -> DictConfig:
    """Return what Hydra makes of a choice of files, its own configuration included. Raises BadInput."""
    for file in files:
        check_no_yaml_bomb(config_files.CONFIG_DIR / f"{file.replace('=', '/', 1)}.yaml", file)
    chosen = " ".join(files)
    try:
        composed = compose(command, [*files, *search_overrides()], return_hydra_config=True)
    except (TypeError, YAMLError) as error:
        raise BadInput(f"{chosen}: a file is not YAML with keys: {one_line(error, 300)}") from None
    except (HydraException, OmegaConfBaseException, RecursionError) as error:
        if "Overriding hydra.searchpath" in str(error):
            raise BadInput(f"{chosen}: hydra.searchpath: {explain_hydra_key('hydra.searchpath')}") from None
        override_needed = "Could not find 'experiment/" in str(error)
        remedy = "; of another group's file write e.g. - override /data: text" if override_needed else ""
        raise BadInput(f"{first_error_line(error)}{remedy}") from None
    except ValueError as error:  # not UTF-8, an integer of thousands of digits
        raise BadInput(f"{chosen}: a file can't be read as YAML: {one_line(error, 300)}") from None
    if "experiment" in composed:
        raise BadInput("experiment: its file must begin with the line # @package _global_")
    check_hydra_settings(command, files, composed)
    return composed


def set_in_dict(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested dicts."""
    *path, name = key.split(".")
    reduce(lambda inner, part: inner[part], path, values)[name] = value


def swept_values(chosen: list[Value], swept_keys: set[str]) -> dict[str, str]:
    """Return a point's values of the swept keys, as text."""
    return {value.key: value.text for value in chosen if value.key in swept_keys}


def adopt_architecture(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a composed config with the architecture of its initial weights. Raises BadInput for a contradiction."""
    model, init_from = plain.get("model"), plain.get("init_from")
    if not isinstance(model, dict) or not isinstance(init_from, str):
        return plain
    if init_from not in ("scratch", ""):
        return plain | {"model": fill_from_weights(init_from, model)}
    if model.get("n_layer") is None and model.get("name") == "pretrained":
        raise BadInput("model=pretrained: takes its shape from weights; say which, e.g. init_from=gpt2")
    return plain


def to_yaml(config: ConfigModel, package: str = "") -> str:
    """Return a config, or its part `package` such as `model`, as YAML. Raises BadInput for an unknown package."""
    plain: Any = config.model_dump(mode="json")
    for name in package.split(".") if package not in ("", "_global_") else ():
        if not isinstance(plain, dict) or name not in plain:
            raise BadInput(f"--package {one_line(package)}: no such part of the configuration{hint(name, plain)}")
        plain = plain[name]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(plain, dict):
        raise BadInput(f"--package {one_line(package)}: is a key; give its group")
    header = f"# @package {package}\n" if package else ""
    return header + OmegaConf.to_yaml(OmegaConf.create(plain))
