"""Config models: validation with helpful messages, stored configs, and the identity of a run."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from nanogpt.errors import BadCheckpoint, BadInput, hint, one_line
from nanogpt.fields import (
    NEVER,
    change_policy,
    describe_allowed,
    earlier_value,
    former_name,
    literal_choices,
    named_values,
)
from nanogpt.files import read_json_bytes


class ConfigModel(BaseModel):
    """Frozen, strict about types, and closed: an undeclared key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    def keys_without_effect(self) -> set[str]:
        """Return the keys that add nothing to the identity, given the values of the others."""
        return set()


Config = TypeVar("Config", bound=ConfigModel)
REASONS = {
    "int_type": "an integer is needed",
    "int_from_float": "an integer is needed",
    "float_type": "a number is needed",
    "finite_number": "a finite number is needed",
    "bool_type": "a boolean is needed",
    "string_type": "text is needed",
    "string_too_short": "text is needed, not nothing",
    "string_pattern_mismatch": "not a choice",
    "model_type": "a group of keys is needed",
    "tuple_type": "a list is needed",
    "dict_type": "keys with values are needed",
    "missing": "a list of two values is needed",
    "too_long": "too many values",
    "too_short": "at least one value is needed",
    "literal_error": "not a choice",
}
RANGE_ERRORS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
DEVICES = ("auto", "cpu", "mps", "cuda")


def describe_unknown_key(
    fields: Iterable[tuple[str, FieldInfo]], key: str, known: Iterable[str], what: str = "key"
) -> str:
    """Return the message for a key that doesn't exist: its new name, or the nearest of `known`."""
    for name, field in fields:
        parent, dot, _ = name.rpartition(".")
        if (was := former_name(field)) and f"{parent}{dot}{was}" == key:
            return f"{one_line(key)}: was renamed to {name}"
    return f"{one_line(key)}: no such {what}{hint(key, known)}"


def field_error(key: str, value: object, why: str) -> PydanticCustomError:
    """Return the error of a check across keys, printed as `error: key=value: why`."""
    if isinstance(value, str):  # pydantic's texts are UTF-8, which can't hold half a surrogate pair
        value = value.encode("utf-8", "backslashreplace").decode()
    return PydanticCustomError("refused", "{why}", {"key": key, "value": value, "why": why})


def from_dict(schema: type[Config], values: Mapping[str, Any]) -> Config:
    """Return a checked config. Raises BadInput with the first wrong key, its value, and what is allowed."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        # Unknown keys first: what they meant to set explains the errors after them.
        details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
        raise BadInput(describe_error(schema, details[0])) from None


def check_value(schema: type[BaseModel], key: str, value: object) -> None:
    """Raise BadInput for a value of the wrong type or range, whatever the other keys are."""
    path = key.split(".")
    nested: Any = value
    for name in reversed(path):
        nested = {name: nested}
    try:
        schema.model_validate(nested)
    except ValidationError as error:
        mine = [detail for detail in error.errors() if [str(part) for part in detail["loc"]][: len(path)] == path]
        if mine:
            raise BadInput(describe_error(schema, mine[0])) from None


def run_check(check: Callable[[], None]) -> None:
    """Run a check across keys that needed facts from outside the config. Raises BadInput."""
    try:
        check()
    except PydanticCustomError as error:
        context = error.context or {}
        raise BadInput(f"{format_setting(context['key'], context['value'])}: {context['why']}") from None


def read_config(schema: type[Config], path: Path) -> Config:
    """Return the config in a JSON file that `to_json` made, now or earlier. Raises BadCheckpoint if it can't be one."""
    try:
        return from_stored(schema, read_json_bytes(path))
    except FileNotFoundError:
        raise BadCheckpoint(f"{one_line(path)}: not found; is {one_line(path.parent)} a run directory?") from None
    except OSError as error:
        raise BadCheckpoint(f"{one_line(path)}: can't be read: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError, BadInput) as error:
        raise BadCheckpoint(f"{one_line(path)}: not a valid config: {one_line(error)}") from None


def from_stored(schema: type[Config], values: Any) -> Config:
    """Return a config that was written out in full, perhaps before some of today's keys existed. Raises BadInput."""
    return from_dict(schema, fill_earlier_values(schema, values))


def fill_earlier_values(schema: type[BaseModel], values: Any) -> Any:
    """Return stored values under today's names, and with the `earlier` values of keys that were added later."""
    if not isinstance(values, Mapping):
        return values
    whole: dict[str, Any] = dict(values)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    for name, field in schema.model_fields.items():
        kind: Any = field.annotation
        was = former_name(field)
        if was in whole and name not in whole:
            whole[name] = whole.pop(was)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if filled := fill_earlier_values(kind, whole.get(name, {})):
                whole[name] = filled
        elif name not in whole and (earlier := earlier_value(field)) is not NEVER:
            whole[name] = earlier
    return whole


def to_json(config: BaseModel) -> str:
    """Return a config as indented JSON with every key."""
    return json.dumps(config.model_dump(mode="json"), indent=2) + "\n"


def iter_fields(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key of a schema with its field, as (`optimizer.lr`, field)."""
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from iter_fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def iter_values(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of a config with its value, as (`optimizer.lr`, 3e-4)."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from iter_values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def default_values(schema: type[BaseModel]) -> dict[str, Any]:
    """Return every key of a schema with its default, as nested dicts."""
    plain: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        kind: Any = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        plain[name] = default_values(kind) if nested else field.default
    return plain


def describe_error(schema: type[BaseModel], error: ErrorDetails) -> str:
    """Return one of pydantic's errors as `key=value: why; allowed: …; did you mean '…'?`."""
    context: dict[str, Any] = error.get("ctx", {})
    keys = dict(iter_fields(schema))
    path = [str(part) for part in error["loc"]]
    if error["type"] == "refused":
        return format_setting(context["key"], context["value"]) + ": " + context["why"]
    if error["type"] == "missing" and isinstance(error["loc"][-1], str):
        return f"{'.'.join(path)}: is missing"
    while ".".join(path) not in keys and len(path) > 1 and error["type"] != "extra_forbidden":
        path.pop()  # an index in a list or a member of a union: name the key
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return describe_unknown_key(keys.items(), key, keys)
    if error["type"] == "renamed":
        return f"{format_setting(key, error['input'])}: was renamed to {context['name']}"
    if error["type"] in ("file_name", "form"):
        what = "not a name" if error["type"] == "file_name" else "not possible"
        return f"{format_setting(key, error['input'])}: {what}; allowed: {error['msg']}"
    why = REASONS.get(error["type"]) or ("out of range" if error["type"] in RANGE_ERRORS else error["msg"])
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        why += ", and this reads as a number or a boolean"
    if error["type"] in ("int_type", "int_from_float") and is_whole(error["input"]):
        why += f"; write {error['input']:.0f}"
    text = f"{format_setting(key, error['input'])}: {why}"
    if key in keys:
        text += f"; allowed: {describe_allowed(keys[key])}"
        choices = literal_choices(keys[key].annotation) or named_values(keys[key].annotation)
        if error["type"] == "string_pattern_mismatch":
            choices = DEVICES
        text += hint(str(error["input"]), choices) if choices else ""
    return text


def is_whole(value: object) -> bool:
    """Return whether a value is a float that equals an integer."""
    return isinstance(value, float) and abs(value) < 2**53 and value.is_integer()


def format_setting(key: str, value: object) -> str:
    """Return `key=value` as typed on a command line."""
    return f"{one_line(key)}={one_line('null' if value is None else value)}"


def identity_fields(section: BaseModel) -> dict[str, Any]:
    """Return the part of a config that can change the result, as plain JSON values."""
    kept: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if change_policy(field) != "free":
            value = getattr(section, name)
            kept[name] = identity_fields(value) if isinstance(value, BaseModel) else value
    return json.loads(json.dumps(kept))


def signature_fields(section: BaseModel) -> dict[str, Any]:
    """Return what `signature` hashes, as plain JSON values: every key that isn't free.

    Keys with their `earlier` value (`knob`) and keys without effect given the others are left out.
    """
    return json.loads(json.dumps(select_signature_fields(section)))


def select_signature_fields(section: BaseModel) -> dict[str, Any]:
    """Return the fields of `signature_fields` with Python values."""
    kept: dict[str, Any] = {}
    unused = section.keys_without_effect() if isinstance(section, ConfigModel) else set[str]()
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            if inner := select_signature_fields(value):
                kept[name] = inner
        elif change_policy(field) != "free" and name not in unused and value != earlier_value(field):
            kept[former_name(field) or name] = value
    return kept


def signature(section: BaseModel) -> str:
    """Return 64 hex digits that identify a config. Equal identities have equal signatures, whatever the defaults."""
    canonical = json.dumps(select_signature_fields(section), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
