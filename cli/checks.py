"""Checks of what was typed and of chosen files that the schema alone can't make."""

import math
import os
import re
from collections.abc import Callable
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from cli.overrides import Value, is_valid
from cli.quoting import format_for_shell
from nanogpt import schema
from nanogpt.errors import BadInput, one_line
from nanogpt.fields import is_literal
from nanogpt.schema import ConfigModel

EXPANDED = ("data.source", "eval.", "against")  # keys and sections where ~ is expanded when the file is read
OURS = ("launcher", "sweeper")
HYDRA_IS_OURS = "Hydra's own settings can't be changed here; a file may set hydra.launcher and hydra.sweeper"
BY_HYDRA = ("overrides", "runtime", "job")  # parts of Hydra's own configuration that differ from command to command


def check_typed_value(kind: type[ConfigModel], one: Value) -> None:
    """Raise BadInput for a number that no float can hold, and for a number or boolean where text is needed."""
    if not isinstance(one.value, bool | int | float):
        return
    text = one.text.strip()
    if not is_valid(kind, one.key, one.value) and is_valid(kind, one.key, text):
        why = "text is needed, and this reads as a number or a boolean"
        raise BadInput(f"{one.key}={one_line(text)}: {why}; quote it: {format_for_shell(one.key, text)}")
    if isinstance(one.value, float) and (extreme := float_range_problem(text, one.value)):
        allowed = schema.describe_allowed(dict(schema.iter_fields(kind))[one.key])
        raise BadInput(f"{one.key}={one_line(text)}: too {extreme} for a number; allowed: {allowed}")


def float_range_problem(text: str, value: float) -> str:
    """Return `large` or `small` where a typed number became infinity or zero, else an empty text."""
    if math.isinf(value) and "inf" not in text.lower():
        return "large"
    return "small" if value == 0 and re.search(r"[1-9]", re.split("[eE]", text)[0]) else ""


def check_tilde(config: ConfigModel) -> None:
    """Raise BadInput for a path that begins with the `~` of a shell: it would be a folder of this name."""
    literal = {key for key, field in schema.iter_fields(type(config)) if is_literal(field)}
    for key, value in schema.iter_values(config):
        if key.startswith(EXPANDED) or key in literal:
            continue
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and text.startswith("~"):
                whole = os.path.expanduser(text)
                remedy = f"write {one_line(whole)}" if whole != text else "there is no such user"
                raise BadInput(f"{key}={one_line(text)}: ~ isn't expanded here; {remedy}")


def check_hydra_settings(command: str, files: tuple[str, ...], composed: DictConfig) -> None:
    """Raise BadInput for a chosen file that changes Hydra's own settings, which nothing here would follow."""
    if not any(file.startswith("experiment=") for file in files):
        return
    usual, mine = (hydra_settings(one) for one in (compose(command, [], return_hydra_config=True), composed))
    key = first_difference(usual, mine)
    if key:
        raise BadInput(f"{' '.join(files)}: hydra{key}: {HYDRA_IS_OURS}")


def hydra_settings(composed: DictConfig) -> dict[str, Any]:
    """Hydra's own configuration without the parts that always differ."""
    plain: Any = OmegaConf.to_container(composed.hydra)
    choices = {group: name for group, name in plain["runtime"]["choices"].items() if group.startswith("hydra/")}
    job = {name: value for name, value in plain["job"].items() if name != "override_dirname"}
    rest = {name: value for name, value in plain.items() if name not in (*OURS, *BY_HYDRA)}
    return rest | {"job": job, "choices": {g: n for g, n in choices.items() if g.removeprefix("hydra/") not in OURS}}


def first_difference(usual: Any, mine: Any) -> str:
    """Return `.key.key` of the first value that differs, empty when none does."""
    if not (isinstance(usual, dict) and isinstance(mine, dict)):
        return "" if usual == mine else " "
    key_of: Callable[[Any], str] = str
    for name in sorted({*usual, *mine}, key=key_of):  # pyright: ignore[reportUnknownArgumentType]
        if name not in usual or name not in mine:
            return f".{name}"
        if inner := first_difference(usual[name], mine[name]):
            return f".{name}{inner}".rstrip()
    return ""
