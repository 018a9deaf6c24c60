"""The values of a composed config as plain ones, interpolations resolved."""

import re
from functools import reduce
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from cli.interpolation import check_interpolations, check_values, strings
from cli.overrides import Value
from nanogpt.errors import BadInput, hint, one_line


def first_error_line(error: Exception) -> str:
    """The first line of what an error says, with the next where it ends in a colon, or at least what it is called."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    key = next((line for line in lines[2:] if line.startswith("full_key: ")), "")
    return f"{lines[0]} {lines[1]} {key}".rstrip() if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def set_value(composed: DictConfig, one: Value) -> None:
    """Set a key as Hydra does. Raises BadInput."""
    try:
        OmegaConf.update(composed, one.key, one.value, merge=True)
    except OmegaConfBaseException as error:
        raise BadInput(f"{one.key}={one_line(one.text)}: {one_line(first_error_line(error))}") from None


def resolve_values(composed: DictConfig, keys: set[str], ordinary: frozenset[str]) -> dict[str, Any]:
    """The config as a plain dict, interpolations resolved. Raises BadInput for one that can't be, or is a secret."""
    try:
        check_interpolations(OmegaConf.to_container(composed))
        plain: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        name = re.sub(r".*'(.*)' not found.*", r"\1", first_error_line(error))
        raise BadInput(f"{error.full_key}: refers to the unknown key '{one_line(name)}'{hint(name, keys)}") from None
    except InterpolationResolutionError as error:
        unset = re.search(r"Environment variable '(.*)' not found", str(error))
        why = f"the environment variable {unset[1]} is not set" if unset else first_error_line(error)
        raise BadInput(f"{error.full_key}: {why}") from None
    check_values(plain, ordinary)
    return plain


def is_constant(value: object) -> bool:
    """Return whether OmegaConf takes a value as it is: one number or text without an interpolation."""
    if type(value) is str:
        return "${" not in value and value != "???"
    return value is None or type(value) in (bool, int, float)


def constant_values(composed: DictConfig, keys: set[str]) -> dict[str, Any] | None:
    """Return the config as a plain dict; None if a value has to be resolved, is missing, or has no place."""
    plain: Any = OmegaConf.to_container(composed)
    if not all(is_constant(text) for _, text in strings(plain)):
        return None
    try:
        for key in keys:
            reduce(lambda inner, name: inner[name], key.split("."), plain)
    except (KeyError, TypeError):
        return None
    return plain
