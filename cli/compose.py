"""Overrides -> Hydra's compose -> plain dict -> typed config, for every point of a sweep.

What launches the points (`hydra/launcher=…`) is read here too, as one more typed config: no class that a YAML names is
ever looked up, so it is the same whether other launcher plugins are installed or not (docs/decisions/0006).
"""

import copy
import os
import sys
from dataclasses import dataclass
from functools import reduce
from typing import Any, Generic, TypeVar

from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cli.checks import HYDRA_IS_OURS, check_hydra_settings, check_tilde, check_typed_value
from cli.config_files import check_no_yaml_bomb, choices, groups
from cli.grid import is_excluded
from cli.interpolation import check_values, ordinary_words
from cli.launcher_config import LAUNCHERS, BasicLauncher, Launcher
from cli.overrides import (
    LAUNCHER,
    LAUNCHER_KEYS,
    SWEEP_KEYS,
    SWEEP_PREFIXES,
    SWEEPER,
    SWEEPER_KEYS,
    Value,
    parse_override,
)
from cli.resolution import constant_values, first_error_line, is_constant, resolve_values, set_value
from cli.sweep_config import SWEEPERS, AllPoints, SweepConfig, Sweeper, sweepers_with_key
from nanogpt import schema
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.interop.sources import fill_from_weights
from nanogpt.schema import ConfigModel, iter_fields

Config = TypeVar("Config", bound=ConfigModel)

HORIZON = ("training.steps", "training.tokens", "training.tokens_per_param", "training.flops")


@dataclass(frozen=True)
class Point(Generic[Config]):
    """One point of a sweep; `changes` are the swept keys with this point's values, as text."""

    config: Config
    changes: dict[str, str]


def register_schemas(command: str, kind: type[ConfigModel]) -> None:
    """Give Hydra every key of the schemas with its default, so YAML files need only say what they choose.

    Launchers and sweepers that installed plugins bring under our names are dropped: their schemas don't fit ours.
    """
    Plugins.instance()  # theirs are stored now, and not again
    store = ConfigStore.instance()
    for group in (LAUNCHER, SWEEPER):
        for name in choices(group):
            store.repo["hydra"][group.removeprefix("hydra/")].pop(f"{name}.yaml", None)
    sweep = {"sweep": schema.default_values(SweepConfig)} if command == "train" else {}
    store.store(name=f"{command}_schema", node=schema.default_values(kind) | sweep)
    for group, kinds in ((LAUNCHER, LAUNCHERS), (SWEEPER, SWEEPERS)):
        for name, aside in kinds.items():
            store.store(group=group, name=f"{name}_defaults", node=schema.default_values(aside))


class Composer:
    """Points of one sweep. Hydra composes once for each choice of files (60 ms); single values are set afterwards."""

    def __init__(self, command: str, kind: type[Config], literals: dict[str, str], sweep_keys: list[Value]) -> None:
        self.command, self.kind, self.literals, self.sweep_keys = command, kind, literals, sweep_keys
        self.keys = {key for key, _ in iter_fields(kind)}
        self.groups = groups(command)
        self.ordinary = ordinary_words(kind, self.groups)
        self.composed_files: dict[tuple[str, ...], DictConfig] = {}
        self.constant_files: dict[tuple[str, ...], dict[str, Any] | None] = {}
        self.printed_notes: set[str] = set()
        """Notes that were printed."""
        self.sweep_keys_in_files: dict[str, list[dict[str, Any]]] = {prefix: [] for prefix in SWEEP_PREFIXES}
        """What is about sweeps in each choice of files."""

    def compose_points(
        self, combinations: list[list[Value]], swept_keys: set[str], exclude: tuple[str, ...]
    ) -> list[Point[Any]]:
        """Every point that isn't left out, checked. Raises BadInput, which says of which point of several."""
        made: list[Point[Any]] = []
        for number, chosen in enumerate(combinations, 1):
            try:
                point = self.compose_point(chosen, swept_keys, exclude)
            except BadInput as error:
                changes = swept_values(chosen, swept_keys)
                if not changes or str(error).startswith("sweep."):
                    raise
                words = " ".join(f"{key}={text}" for key, text in changes.items())
                raise BadInput(f"{error}; in point {number} of {len(combinations)}: {words}") from None
            made += [point] if point is not None else []
        if not made:
            raise BadInput(f"sweep.exclude: leaves out all {len(combinations)} points")
        return made

    def compose_point(self, chosen: list[Value], swept_keys: set[str], exclude: tuple[str, ...]) -> Point[Any] | None:
        """One point, checked; None when it is left out. Raises BadInput."""
        plain = self.compose_values(chosen)
        if exclude and is_excluded(exclude, self.condition_values(plain, chosen), parse_override):
            return None
        return Point(self.build_config(plain), swept_values(chosen, swept_keys))

    def condition_values(self, plain: dict[str, Any], chosen: list[Value]) -> dict[str, Any]:
        """A point's values by key, and of each group the file that was chosen."""
        inner = self.flatten(plain)
        labels = {group: inner.get(f"{group}.name") for group in self.groups}
        return labels | inner | {one.key: one.text for one in chosen if one.key in self.groups}

    def flatten(self, plain: dict[str, Any]) -> dict[str, Any]:
        """A point's values by key."""
        return {key: reduce(lambda part, name: part[name], key.split("."), plain) for key in self.keys}

    def chosen_files(self, chosen: list[Value]) -> tuple[str, ...]:
        """The files that a point chooses, as overrides."""
        given = {one.key: one.value for one in chosen}
        files = [f"{one.key}={one.text}" for one in chosen if one.key in (*self.groups, LAUNCHER, SWEEPER)]
        weights = given.get("init_from", "scratch")
        if "model" in self.groups and weights not in ("scratch", "") and not given.keys() & {"model", "experiment"}:
            files.append("model=pretrained")
        return tuple(files)

    def compose_values(self, chosen: list[Value]) -> dict[str, Any]:
        """One point, composed. Raises BadInput."""
        given = {one.key for one in chosen}
        if sum(key in given for key in HORIZON) == 1:  # the horizon asked for replaces the preset's
            chosen = [*chosen, *(Value(key, "null", None) for key in HORIZON if key not in given and key in self.keys)]
        values = [one for one in chosen if one.key in self.keys]
        for one in values:
            check_typed_value(self.kind, one)
        plain = self.set_values(self.chosen_files(chosen), values)
        if "eval.fit" in self.keys and not given & {"eval.every", "eval.fit"}:
            plain["eval"]["fit"] = True  # the interval of the files is for their usual length
        return plain if "schedule.warmup_steps" in given else self.shorten_warmup(plain)

    def set_values(self, files: tuple[str, ...], values: list[Value]) -> dict[str, Any]:
        """Return a choice of files with some values set, as a plain dict. Raises BadInput."""
        base = self.compose_files(files)
        constants = self.constant_values_of(files)
        if constants is None or not all(is_constant(one.value) for one in values):
            composed = copy.deepcopy(base)
            for one in values:
                set_value(composed, one)
            return resolve_values(composed, self.keys, self.ordinary)
        plain = copy.deepcopy(constants)  # ten times as fast
        for one in values:
            *path, name = one.key.split(".")
            reduce(lambda inner, part: inner[part], path, plain)[name] = one.value
        check_values(plain, self.ordinary)
        return plain

    def constant_values_of(self, files: tuple[str, ...]) -> dict[str, Any] | None:
        """Return a choice of files as a plain dict; None if there is anything to resolve in it."""
        if files not in self.constant_files:
            self.constant_files[files] = constant_values(self.compose_files(files), self.keys)
        return self.constant_files[files]

    def shorten_warmup(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Shorten a file's warm-up that is longer than the run to a tenth of the run, and say so once."""
        schedule, training = plain.get("schedule"), plain.get("training")
        if not isinstance(schedule, dict) or not isinstance(training, dict):
            return plain
        warmup, steps, end = schedule.get("warmup_steps"), training.get("steps"), schedule.get("decay_steps")
        if end is not None or not isinstance(warmup, int) or not isinstance(steps, int) or not warmup > steps > 0:
            return plain
        said = f"schedule.warmup_steps={warmup} of the files is longer than the run; {steps // 10} is used, a tenth"
        if said not in self.printed_notes and os.environ.get("RANK", "0") == "0":
            print(f"note: {said}", file=sys.stderr)
        self.printed_notes.add(said)
        return plain | {"schedule": schedule | {"warmup_steps": steps // 10}}

    def build_config(self, plain: dict[str, Any]) -> Any:
        """One point, checked. Raises BadInput."""
        plain = adopt_architecture(plain)
        check_values(self.literals)
        for key, text in self.literals.items():
            *path, name = key.split(".")
            reduce(lambda inner, part: inner[part], path, plain)[name] = text
        config = schema.from_dict(self.kind, plain)
        check_tilde(config)
        return config

    def compose_files(self, files: tuple[str, ...]) -> DictConfig:
        """What Hydra makes of a choice of files, without what is about sweeps. Raises BadInput."""
        if files not in self.composed_files:
            for file in files:
                check_no_yaml_bomb(*file.split("=", 1))
            try:
                composed = compose(self.command, list(files), return_hydra_config=True)
            except (TypeError, YAMLError) as error:
                raise BadInput(f"{' '.join(files)}: a file is not YAML with keys: {one_line(error, 300)}") from None
            except (HydraException, OmegaConfBaseException, RecursionError) as error:
                if "hydra.searchpath" in str(error):
                    raise BadInput(f"{' '.join(files)}: hydra.searchpath: {HYDRA_IS_OURS}") from None
                own = "Could not find 'experiment/" in str(error)
                remedy = "; of another group's file write e.g. - override /data: text" if own else ""
                raise BadInput(f"{first_error_line(error)}{remedy}") from None
            except ValueError as error:  # not UTF-8, an integer of thousands of digits
                raise BadInput(f"{' '.join(files)}: a file can't be read as YAML: {one_line(error, 300)}") from None
            if "experiment" in composed:
                raise BadInput("experiment: its file must begin with the line # @package _global_")
            check_hydra_settings(self.command, files, composed)
            for prefix in SWEEP_PREFIXES:
                there = OmegaConf.select(composed, prefix.rstrip("."))
                plain = resolve_values(there, self.keys, self.ordinary) if there is not None else {}
                if plain not in self.sweep_keys_in_files[prefix]:
                    self.sweep_keys_in_files[prefix].append(plain)
            with open_dict(composed):
                del composed["hydra"]
                composed.pop("sweep", None)
            self.composed_files[files] = composed
        return self.composed_files[files]

    def command_line_keys(self, prefix: str) -> dict[str, Any]:
        """Those keys of a prefix that the command line sets, without it."""
        return {one.key.removeprefix(prefix): one.value for one in self.sweep_keys if one.key.startswith(prefix)}

    def merge_sweep_keys(self, prefix: str) -> dict[str, Any]:
        """What files and command line say under a prefix. Raises BadInput when an experiment's files differ in it."""
        if len(self.sweep_keys_in_files[prefix]) > 1:
            if prefix == SWEEP_KEYS:
                raise BadInput("experiment: these have sweep sections that differ; sweep one of them at a time")
            what = prefix.rstrip(".").replace("hydra.", "hydra/")
            raise BadInput(f"{what}: the points of this sweep ask for different ones; give one on the command line")
        return self.sweep_keys_in_files[prefix][0] | self.command_line_keys(prefix)

    def settings(self) -> SweepConfig:
        """Which points there are, checked. Raises BadInput."""
        return check_sweep_keys(SweepConfig, self.merge_sweep_keys(SWEEP_KEYS), SWEEP_KEYS)

    def sweeper(self) -> Sweeper:
        """How far each point is trained, checked. Raises BadInput."""
        values = self.merge_sweep_keys(SWEEPER_KEYS)
        if self.command != "train":
            return AllPoints()
        if values.get("method") not in SWEEPERS:
            raise BadInput(f"{SWEEPER}: its file must begin with defaults: [halving, _self_], or optuna")
        kind = SWEEPERS[values["method"]]
        if kind is AllPoints and (given := self.command_line_keys(SWEEPER_KEYS)):
            key = next(iter(given))
            raise BadInput(f"{SWEEPER_KEYS}{key}: choose {sweepers_with_key(key)}")
        return check_sweep_keys(kind, values, SWEEPER_KEYS)

    def launcher(self) -> Launcher:
        """The launcher of all points, checked. Raises BadInput."""
        values = self.merge_sweep_keys(LAUNCHER_KEYS)
        if values.get("executor") not in LAUNCHERS:
            raise BadInput(
                f"{LAUNCHER}: its file must begin with defaults: [submitit_slurm, _self_], or submitit_local"
            )
        kind = LAUNCHERS[values["executor"]]
        if kind is BasicLauncher and (given := self.command_line_keys(LAUNCHER_KEYS)):
            if self.command != "train":  # about jobs that have their launcher
                return BasicLauncher()
            raise BadInput(
                f"{LAUNCHER_KEYS}{next(iter(given))}: choose hydra/launcher=submitit_slurm or submitit_local"
            )
        return check_sweep_keys(kind, values, LAUNCHER_KEYS)


def check_sweep_keys(kind: type[Config], values: dict[str, Any], prefix: str) -> Config:
    """A config of what is about sweeps. Raises BadInput with the whole key."""
    try:
        return schema.from_dict(kind, values)
    except BadInput as error:
        raise BadInput(f"{prefix}{error}") from None


def swept_values(chosen: list[Value], swept_keys: set[str]) -> dict[str, str]:
    """A point's values of the keys in which points differ, as text."""
    return {one.key: one.text for one in chosen if one.key in swept_keys}


def adopt_architecture(plain: dict[str, Any]) -> dict[str, Any]:
    """A composed config whose model is that of the weights it starts from. Raises BadInput for a contradiction."""
    model, init_from = plain.get("model"), plain.get("init_from")
    if not isinstance(model, dict) or not isinstance(init_from, str):
        return plain
    if init_from not in ("scratch", ""):
        return plain | {"model": fill_from_weights(init_from, model)}
    if model.get("n_layer") is None and model.get("name") == "pretrained":
        raise BadInput("model=pretrained: takes its shape from weights; say which, e.g. init_from=gpt2")
    return plain


def to_yaml(config: ConfigModel, package: str = "") -> str:
    """The config that would run, checked and resolved, as YAML; with a `package` such as `model` that part of it.

    Raises BadInput for a package that doesn't exist.
    """
    plain: Any = config.model_dump(mode="json")
    for name in package.split(".") if package not in ("", "_global_") else ():
        if not isinstance(plain, dict) or name not in plain:
            raise BadInput(f"--package {one_line(package)}: no such part of the configuration{hint(name, plain)}")
        plain = plain[name]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(plain, dict):
        raise BadInput(f"--package {one_line(package)}: is one key; give the group it is in")
    header = f"# @package {package}\n" if package else ""
    return header + OmegaConf.to_yaml(OmegaConf.create(plain))
