"""Checks of typed values and chosen files that need more than the schema."""

import math
import os
import re
from collections.abc import Callable
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from cli.config_files import search_overrides
from cli.overrides import Value, value_problem
from cli.quoting import format_for_shell
from cli.sweep_keys import explain_hydra_key
from nanogpt import schema
from nanogpt.errors import BadInput, one_line
from nanogpt.fields import is_literal
from nanogpt.schema import ConfigModel

EXPANDED = ("data.source", "eval.", "against")  # keys and groups whose readers expand ~
OF_COMMAND = ("overrides", "runtime", "job", "launcher", "sweeper")  # parts of Hydra's configuration that may differ


def check_typed_value(kind: type[ConfigModel], typed: Value) -> None:
    """Raise BadInput for a number that no float can hold, and for a number or boolean where text is needed."""
    key, value, text = typed.key, typed.value, typed.text.strip()
    if not isinstance(value, bool | int | float):
        return
    if value_problem(kind, key, value) and not value_problem(kind, key, text):
        why = "text is needed, and this reads as a number or a boolean"
        raise BadInput(f"{key}={one_line(text)}: {why}; quote it: {format_for_shell(key, text)}")
    if isinstance(value, float) and (extreme := float_range_problem(text, value)):
        allowed = schema.describe_allowed(dict(schema.iter_fields(kind))[key])
        raise BadInput(f"{key}={one_line(text)}: too {extreme} for a number; allowed: {allowed}")


def float_range_problem(text: str, value: float) -> str:
    """Return `large` or `small` if a typed number became infinity or zero, else an empty text."""
    if math.isinf(value) and "inf" not in text.lower():
        return "large"
    return "small" if value == 0 and re.search(r"[1-9]", re.split("[eE]", text)[0]) else ""


def check_tilde(config: ConfigModel) -> None:
    """Raise BadInput for a path that begins with `~`: it would create a folder of this name."""
    literal = {key for key, field in schema.iter_fields(type(config)) if is_literal(field)}
    for key, value in schema.iter_values(config):
        if key.startswith(EXPANDED) or key in literal:
            continue
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and text.startswith("~"):
                expanded = os.path.expanduser(text)
                remedy = f"write {one_line(expanded)}" if expanded != text else "there is no such user"
                raise BadInput(f"{key}={one_line(text)}: ~ isn't expanded here; {remedy}")


def check_hydra_settings(command: str, files: tuple[str, ...], composed: DictConfig) -> None:
    """Raise BadInput for a chosen file that changes Hydra's own settings, which would have no effect."""
    if not any(file.startswith("experiment=") for file in files):
        return
    usual = hydra_settings(compose(command, search_overrides(), return_hydra_config=True))
    if key := first_difference(usual, hydra_settings(composed)):
        raise BadInput(f"{' '.join(files)}: hydra{key}: {explain_hydra_key(f'hydra{key}')}")


def hydra_settings(composed: DictConfig) -> dict[str, Any]:
    """Return Hydra's own configuration without launcher, sweeper and what differs between commands."""
    plain: Any = OmegaConf.to_container(composed.hydra)
    ours = ("hydra/launcher", "hydra/sweeper")
    choices = plain["runtime"]["choices"].items()
    chosen = {group: name for group, name in choices if group.startswith("hydra/") and not group.startswith(ours)}
    job = {name: value for name, value in plain["job"].items() if name != "override_dirname"}
    rest = {name: value for name, value in plain.items() if name not in OF_COMMAND}
    return rest | {"job": job, "choices": chosen}


def first_difference(usual: Any, mine: Any) -> str:
    """Return `.key.key` of the first value that differs, empty if none does."""
    if not (isinstance(usual, dict) and isinstance(mine, dict)):
        return "" if usual == mine else " "
    key_of: Callable[[Any], str] = str
    for name in sorted({*usual, *mine}, key=key_of):  # pyright: ignore[reportUnknownArgumentType]
        if name not in usual or name not in mine:
            return f".{name}"
        if inner := first_difference(usual[name], mine[name]):
            return f".{name}{inner}".rstrip()
    return ""
