"""Launchers and sweepers of installed Hydra plugins: their names, and the config of a chosen one.

Hydra composes only the name of a plugin and the values that files set. Class paths come from the config that the plugin
itself stored when it was imported, never from YAML or the command line.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cli.config_files import choices
from nanogpt.errors import BadEnvironment, BadInput, hint, one_line
from nanogpt.redaction import find_secret, secret_values

NAME = "plugin"  # key that holds the name of the chosen plugin
CLASS_KEYS = ("custom_search_space",)  # keys of plugins whose text is imported
PIP = {
    "hydra/launcher": {
        "joblib": "hydra-joblib-launcher",
        "ray": "hydra-ray-launcher",
        "ray_aws": "hydra-ray-launcher",
        "rq": "hydra-rq-launcher",
        "submitit_local_plugin": "hydra-submitit-launcher",
        "submitit_slurm_plugin": "hydra-submitit-launcher",
    },
    "hydra/sweeper": {
        "ax": "hydra-ax-sweeper",
        "nevergrad": "hydra-nevergrad-sweeper",
        "optuna_plugin": "hydra-optuna-sweeper",
    },
}


@dataclass(frozen=True)
class PluginLauncher:
    """A launcher of an installed Hydra plugin."""

    name: str
    config: DictConfig
    executor: Literal["plugin"] = "plugin"


@dataclass(frozen=True)
class PluginSweeper:
    """A sweeper of an installed Hydra plugin."""

    method: str
    """Its name."""
    config: DictConfig


@cache
def stored_configs() -> dict[str, DictConfig]:
    """Return the configs of plugins and of their parts by group and name, such as `hydra/launcher/joblib`.

    A name that a file in conf/ has too ends in `_plugin`. Raises BadEnvironment if a plugin can't be imported.
    """
    try:
        Plugins.instance()
    except Exception as error:  # of a plugin's module
        raise BadEnvironment(f"an installed Hydra plugin can't be imported: {one_line(error, 300)}") from None
    found: dict[str, DictConfig] = {}
    for group in PIP:
        for path, node in walk_store(group, ConfigStore.instance().repo["hydra"][group.rpartition("/")[2]]):
            name = path.removeprefix(f"{group}/")
            plain = OmegaConf.to_container(node)
            target = str(plain.get("_target_")) if isinstance(plain, dict) else ""
            if "/" in name or target.startswith("hydra_plugins."):
                found[f"{path}_plugin" if name in choices(group) else path] = node
    return found


def walk_store(group: str, entries: dict[str, Any]) -> Iterator[tuple[str, DictConfig]]:
    """Yield (group and name, config) of each entry, those of nested groups too."""
    for name, entry in entries.items():
        if isinstance(entry, ConfigNode):
            yield f"{group}/{name.removesuffix('.yaml')}", copy.deepcopy(entry.node)
        else:
            yield from walk_store(f"{group}/{name}", entry)


def plugin_names(group: str) -> list[str]:
    """Return the names that plugins add to a group."""
    return [path.rpartition("/")[2] for path in stored_configs() if path.rpartition("/")[0] == group]


def plugin_groups() -> list[str]:
    """Return the groups of parts of plugins, such as `hydra/sweeper/sampler`."""
    return sorted({path.rpartition("/")[0] for path in stored_configs()} - PIP.keys())


def plugin_keys() -> list[str]:
    """Return the keys of plugins, such as `hydra.launcher.n_jobs`. What is below such a key is checked later."""
    parents = {path: path.rpartition("/")[0].replace("/", ".") for path in stored_configs()}
    names = {f"{parents[path]}.{name}" for path, node in stored_configs().items() for name in node if is_free(name)}
    return sorted(names)


def plugins_with_key(group: str, key: str) -> list[str]:
    """Return the plugins of a group that have a key."""
    return [name for name in plugin_names(group) if key.partition(".")[0] in stored_configs()[f"{group}/{name}"]]


def is_free(name: Any) -> bool:
    """Return whether files and the command line may set a key of a plugin."""
    return not str(name).startswith("_") and name not in ("defaults", *CLASS_KEYS)


def store_names() -> None:
    """Replace the configs of plugins in Hydra's store by their names and the parts that they choose."""
    for path, config in stored_configs().items():
        group, _, name = path.rpartition("/")
        defaults = {"defaults": OmegaConf.to_container(config.defaults)} if "defaults" in config else {}
        ConfigStore.instance().store(group=group, name=name, node={NAME: name} | defaults)


def build_plugin_config(group: str, values: dict[str, Any]) -> DictConfig:
    """Return the config of the plugin that `values` names, with these values in it. Raises BadInput.

    `values` are those of files, resolved, and those of the command line with dotted keys.
    """
    prefix, path = group.replace("/", "."), f"{group}/{values[NAME]}"
    if path not in stored_configs():
        raise BadInput(f"{prefix}.{NAME}={one_line(values[NAME])}: no such plugin; choose one with {group}=NAME")
    config = copy.deepcopy(stored_configs()[path])
    with open_dict(config):
        config.pop("defaults", None)
    for key, value in values.items():
        if key == NAME:
            continue
        check_value(f"{prefix}.{key}", value)
        try:
            if isinstance(value, dict) and NAME in value:
                config[key] = build_plugin_config(f"{group}/{key}", value)  # pyright: ignore[reportUnknownArgumentType]
            else:
                config.merge_with(nest(key, value))
        except (OmegaConfBaseException, AttributeError) as error:
            known = [str(name) for name in config if is_free(name)]
            near = "" if key.partition(".")[0] in known else hint(key, known)
            raise BadInput(f"{prefix}.{key}={one_line(value)}: {one_line(str(error).splitlines()[0])}{near}") from None
    return config


def nest(key: str, value: Any) -> dict[str, Any]:
    """Return `{"a": {"b": value}}` for the key `a.b`."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def check_value(key: str, value: Any) -> None:
    """Raise BadInput if a value for a plugin names a class or is an interpolation, nested ones included."""
    if not all(map(is_free, key.split("."))):
        raise BadInput(f"{one_line(key)}: no class can be named here; a plugin's are those that it comes with")
    if isinstance(value, str) and "${" in value:
        raise BadInput(f"{one_line(key)}={one_line(value)}: needs its value written out; no interpolation")
    if isinstance(value, str) and (what := find_secret(value, secret_values())):
        raise BadInput(f"{one_line(key)}: holds {what}; a plugin may print or store its settings")
    if isinstance(value, dict):
        for name, inner in value.items():  # pyright: ignore[reportUnknownVariableType]
            if name != NAME:
                check_value(f"{key}.{name}", inner)
    elif isinstance(value, list):
        for inner in value:  # pyright: ignore[reportUnknownVariableType]
            check_value(key, inner)
