"""Keys about a sweep, not about its runs: `hydra.launcher.…`, `hydra.sweeper.…` and `sweep.…`."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic.fields import FieldInfo

from cli.launcher_config import LAUNCHERS, BasicLauncher, Launcher
from cli.plugin_config import NAME as PLUGIN
from cli.plugin_config import PluginLauncher, PluginSweeper, build_plugin_config, plugins_with_key
from cli.sweep_config import SWEEPERS, AllPoints, SweepConfig, Sweeper
from nanogpt import schema
from nanogpt.errors import BadInput
from nanogpt.schema import ConfigModel

Config = TypeVar("Config", bound=ConfigModel)
LAUNCHER, SWEEPER = "hydra/launcher", "hydra/sweeper"
LAUNCHER_KEYS, SWEEPER_KEYS, SWEEP_KEYS = "hydra.launcher.", "hydra.sweeper.", "sweep."
SWEEP_PREFIXES = (LAUNCHER_KEYS, SWEEPER_KEYS, SWEEP_KEYS)
RUN_FOLDERS = "runs_dir=FOLDER says where runs and studies are, name=NAME what this one is called"
HYDRA_ADVICE = {  # keys of Hydra that have another name here
    "hydra.run.dir": RUN_FOLDERS,
    "hydra.sweep.dir": RUN_FOLDERS,
    "hydra.sweep.subdir": "a point's folder is named by what it changes; name=NAME names the study",
    "hydra.job.name": "give name=NAME",
    "hydra.mode": "give -m for a sweep",
    "hydra.searchpath": "it is given on the command line, or as --config-dir FOLDER",
}
GROUPS = {"train": [LAUNCHER, SWEEPER], "launch": [LAUNCHER]}  # command -> its groups about sweeps
KEYS = {"train": SWEEP_PREFIXES, "launch": (LAUNCHER_KEYS,)}  # command -> beginnings of its keys about sweeps


def explain_hydra_key(key: str) -> str:
    """Return why a key of Hydra can't be set, and what to set instead."""
    advice = HYDRA_ADVICE.get(key, "only hydra.launcher, hydra.sweeper and hydra.searchpath may be set")
    return f"Hydra's own settings can't be changed here; {advice}"


def sweep_groups(command: str) -> list[str]:
    """Return the groups of a command that choose how its points are run."""
    return GROUPS.get(command, [])


def sweep_key_names(command: str) -> list[str]:
    """Return the keys about sweeps that a command takes: `hydra.launcher.partition` and so on."""
    return [key for key in sweep_fields() if key.startswith(KEYS.get(command, ()))]


def sweep_fields() -> dict[str, FieldInfo]:
    """Return every key about sweeps with its field."""
    kinds: list[tuple[str, type[ConfigModel]]] = [
        *((LAUNCHER_KEYS, kind) for kind in LAUNCHERS.values()),
        *((SWEEPER_KEYS, kind) for kind in SWEEPERS.values()),
        (SWEEP_KEYS, SweepConfig),
    ]
    return {prefix + key: field for prefix, kind in kinds for key, field in schema.iter_fields(kind)}


@dataclass
class SweepKeys:
    """Values of the keys about a sweep, from its command line and its files."""

    command: str
    given: dict[str, Any]
    """Values on the command line."""
    in_files: list[dict[str, dict[str, Any]]] = field(default_factory=list[dict[str, dict[str, Any]]])
    """Values by prefix and name, for each choice of files that was composed."""

    def settings(self) -> SweepConfig:
        """Return the checked keys under `sweep.`. Raises BadInput."""
        return validate(SweepConfig, self.merge(SWEEP_KEYS), SWEEP_KEYS)

    def sweeper(self) -> Sweeper | PluginSweeper:
        """Return the checked sweeper. Raises BadInput."""
        values = self.merge(SWEEPER_KEYS)
        if self.command != "train":
            return AllPoints()
        if PLUGIN in values:
            return PluginSweeper(str(values[PLUGIN]), build_plugin_config(SWEEPER, values))
        if values.get("method") not in SWEEPERS:
            raise BadInput(f"{SWEEPER}: its file must begin with defaults: [halving, _self_], or optuna")
        kind = SWEEPERS[values["method"]]
        if kind is AllPoints and (given := self.given_under(SWEEPER_KEYS)):
            key = next(iter(given))
            methods = [name for name, sweeper in SWEEPERS.items() if key in sweeper.model_fields and key != "method"]
            methods += plugins_with_key(SWEEPER, key)
            raise BadInput(f"{SWEEPER_KEYS}{key}: choose {' or '.join(f'{SWEEPER}={name}' for name in methods)}")
        return validate(kind, values, SWEEPER_KEYS)

    def launcher(self) -> Launcher | PluginLauncher:
        """Return the checked launcher. Raises BadInput."""
        values = self.merge(LAUNCHER_KEYS)
        if PLUGIN in values:
            return PluginLauncher(str(values[PLUGIN]), build_plugin_config(LAUNCHER, values))
        if values.get("executor") not in LAUNCHERS:
            why = "its file must begin with defaults: [submitit_slurm, _self_], or submitit_local"
            raise BadInput(f"{LAUNCHER}: {why}")
        kind = LAUNCHERS[values["executor"]]
        if kind is BasicLauncher and (given := self.given_under(LAUNCHER_KEYS)):
            if self.command != "train":  # the jobs of `nanogpt retry` have a launcher already
                return BasicLauncher()
            key = next(iter(given))
            names = plugins_with_key(LAUNCHER, key) or ["submitit_slurm", "submitit_local"]
            raise BadInput(f"{LAUNCHER_KEYS}{key}: choose {LAUNCHER}={' or '.join(names)}")
        return validate(kind, values, LAUNCHER_KEYS)

    def given_under(self, prefix: str) -> dict[str, Any]:
        """Return the values on the command line under a prefix, with keys that lack it."""
        return {key.removeprefix(prefix): value for key, value in self.given.items() if key.startswith(prefix)}

    def merge(self, prefix: str) -> dict[str, Any]:
        """Return the values under a prefix; the command line overrides files. Raises BadInput if files differ."""
        first, *others = [values[prefix] for values in self.in_files]
        if any(values != first for values in others):
            if prefix == SWEEP_KEYS:
                raise BadInput("experiment: these have sweep sections that differ; sweep one of them at a time")
            group = prefix.rstrip(".").replace("hydra.", "hydra/")
            raise BadInput(f"{group}: the points of this sweep ask for different ones; give one on the command line")
        return first | self.given_under(prefix)


def validate(kind: type[Config], values: dict[str, Any], prefix: str) -> Config:
    """Return a config of keys under a prefix. Raises BadInput with the whole key."""
    try:
        return schema.from_dict(kind, values)
    except BadInput as error:
        raise BadInput(f"{prefix}{error}") from None
