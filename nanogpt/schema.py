"""What a config model is made of, and the way from plain dictionaries to it with errors that a person can act on."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from nanogpt.errors import BadCheckpoint, BadInput, escaped, hint


class Section(BaseModel):
    """Frozen, strict about types, and closed: a key that isn't declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


Config = TypeVar("Config", bound=Section)
SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
"""Names of environment variables that must not get into a config."""

TYPES = {
    "int_type": "an integer is needed",
    "int_from_float": "an integer is needed",
    "float_type": "a number is needed",
    "finite_number": "a finite number is needed",
    "bool_type": "a boolean is needed",
    "string_type": "text is needed",
    "model_type": "a group of keys is needed",
    "tuple_type": "a list is needed",
    "dict_type": "keys with values are needed",
    "missing": "a list of two values is needed",
    "too_long": "too many values",
    "too_short": "at least one value is needed",
    "literal_error": "not a choice",
}
OUTSIDE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "string_pattern_mismatch")


Change = Literal["fixed", "guarded", "free"]


def knob(change: Change, default: Any, doc: str, literal: bool = False, **limits: Any) -> Any:
    """A field with its one-line meaning, and what a run that continues may do with it.

    `fixed` never changes within a run, `guarded` only when `resume.allow_change` names it, `free` always. What isn't
    free is *science*: it can change the result and belongs to the run's identity. `literal` fields are free text: on
    the command line all that follows `=` is the value, with no quoting rules.
    """
    return Field(default, description=doc, json_schema_extra={"change": change, "literal": literal}, **limits)


fixed, guarded, free = (partial(knob, change) for change in get_args(Change))


def change_of(field: FieldInfo) -> Change | None:
    """The class of a key, or None when nobody gave it one."""
    extra = field.json_schema_extra
    return extra.get("change") if isinstance(extra, Mapping) else None  # type: ignore[return-value]


def refuse(key: str, value: object, why: str) -> PydanticCustomError:
    """The error of a cross-field check: `error: key=value: why`."""
    if isinstance(value, str):  # pydantic's texts are UTF-8, which can't hold half a surrogate pair
        value = value.encode("utf-8", "backslashreplace").decode()
    return PydanticCustomError("refused", "{why}", {"key": key, "value": value, "why": why})


def from_dict(schema: type[Config], values: Mapping[str, Any]) -> Config:
    """A checked config. Raises BadInput naming the first wrong key, its value, what is allowed and the nearest name."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        # Unknown keys first: what they meant to set explains the errors after them.
        details = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        raise BadInput(message(schema, details[0])) from None


def check_value(schema: type[BaseModel], key: str, value: object) -> None:
    """A value for a key is of its kind and in its range, whatever the other keys are. Raises BadInput."""
    path = key.split(".")
    nested: Any = value
    for name in reversed(path):
        nested = {name: nested}
    try:
        schema.model_validate(nested)
    except ValidationError as error:
        mine = [one for one in error.errors() if [str(part) for part in one["loc"]][: len(path)] == path]
        if mine:
            raise BadInput(message(schema, mine[0])) from None


def checked(check: Callable[[], None]) -> None:
    """Run a cross-field check that had to wait for facts from outside. Raises BadInput."""
    try:
        check()
    except PydanticCustomError as error:
        context = error.context or {}
        raise BadInput(f"{shown(context['key'], context['value'])}: {context['why']}") from None


def read(schema: type[Config], path: Path) -> Config:
    """The config in a JSON file that `write` made. Raises BadCheckpoint when it can't be one."""
    try:
        return from_dict(schema, json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise BadCheckpoint(f"{escaped(path)}: not found; is {escaped(path.parent)} a run directory?") from None
    except OSError as error:
        raise BadCheckpoint(f"{escaped(path)}: can't be read: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError, BadInput) as error:
        raise BadCheckpoint(f"{escaped(path)}: not a valid config: {escaped(error)}") from None


def to_json(config: BaseModel) -> str:
    """A config as indented JSON, every key written out."""
    return json.dumps(config.model_dump(mode="json"), indent=2) + "\n"


def leaves(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every settable key of a schema with its field, as (`optimizer.lr`, field)."""
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def values(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config with its value, as (`optimizer.lr`, 3e-4)."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def defaults(schema: type[BaseModel]) -> dict[str, Any]:
    """Every key of a schema with its default, as plain nested values."""
    plain: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        kind: Any = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        plain[name] = defaults(kind) if nested else field.default
    return plain


def message(schema: type[BaseModel], error: ErrorDetails) -> str:
    """`key=value: why; allowed: …; did you mean '…'?` for one of pydantic's errors."""
    context: dict[str, Any] = error.get("ctx", {})
    keys = dict(leaves(schema))
    path = [str(part) for part in error["loc"]]
    if error["type"] == "refused":
        return shown(context["key"], context["value"]) + ": " + context["why"]
    while ".".join(path) not in keys and len(path) > 1 and error["type"] != "extra_forbidden":
        path.pop()  # a place in a list, a kind among several: name the key
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"{escaped(key)}: no such key{hint(key, keys)}"
    if error["type"] in ("file_name", "form"):
        what = "not a name" if error["type"] == "file_name" else "not possible"
        return f"{shown(key, error['input'])}: {what}; allowed: {error['msg']}"
    why = TYPES.get(error["type"]) or ("out of range" if error["type"] in OUTSIDE else error["msg"])
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        why += f", and this reads as a number or a boolean; quote it: {key}=\"'{error['input']}'\""
    text = f"{shown(key, error['input'])}: {why}"
    if key in keys:
        text += f"; allowed: {allowed(keys[key])}"
        choices = choices_of(keys[key].annotation)
        text += hint(str(error["input"]), choices) if choices else ""
    return text


def shown(key: str, value: object) -> str:
    """`key=value` as a person would type it."""
    return f"{escaped(key)}={escaped('null' if value is None else value)}"


def allowed(field: FieldInfo) -> str:
    """What a field takes, in words: `one of a, b`, `integer in [1, 1000]`, `number in (0, 10] or null`."""
    kinds = get_args(field.annotation) or (field.annotation,)
    null = " or null" if type(None) in kinds else ""
    choices = choices_of(field.annotation)
    if choices:
        several = "a list of " if "tuple" in str(field.annotation) else "one of "
        return several + ", ".join(choices) + null
    null = "".join(f" or {word}" for kind in kinds for word in choices_of(kind)) + null
    limits = list(field.metadata)
    for kind in kinds:
        limits += getattr(kind, "__metadata__", ())
    bounds = {name: value for limit in flat(limits) for name, value in limit.items()}
    if "pattern" in bounds:
        return "auto, cpu, mps, cuda or cuda:N"
    word = next((word for name, word in WORDS.items() if name in str(field.annotation)), "a value")
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None and high is None:
        return word + null
    if "list" in word:
        return word
    left = f"[{low}" if "ge" in bounds else f"({low}" if "gt" in bounds else "(-inf"
    right = f"{high}]" if "le" in bounds else f"{high})" if "lt" in bounds else "inf)"
    return f"{word} in {left}, {right}{null}"


WORDS = {
    "tuple[str, ...": "a list of keys",
    "tuple[dict": "a list of {key: value}",
    "dict[str": "{key: value}",
    "tuple[typing.Annotated[str": "a list of texts",
    "tuple[typing.Annotated[int": "a list of integers",
    "tuple[typing.Annotated[float": "two numbers",
    "tuple": "a list of texts",
    "bool": "true or false",
    "int": "integer",
    "float": "number",
    "str": "text",
}


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The values of a Literal, of an optional one, of a list's elements; none of a Literal among other kinds."""
    parts = get_args(annotation)
    kinds = [part for part in parts if part not in (type(None), ...)]
    if len(kinds) == 1 and get_origin(kinds[0]) is Literal:
        parts = get_args(kinds[0])
    return tuple(part for part in parts if isinstance(part, str))


def flat(metadata: list[Any]) -> Iterator[dict[str, Any]]:
    """Each constraint as {name: value}, out of annotated_types objects and nested Fields."""
    for one in metadata:
        if isinstance(one, FieldInfo):
            yield from flat(one.metadata)
        else:
            yield {
                name: value
                for name in ("ge", "gt", "le", "lt", "pattern")
                if (value := getattr(one, name, None)) is not None
            }


def science(section: BaseModel) -> dict[str, Any]:
    """The part of a config that can change the result, as plain JSON values."""
    kept: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if change_of(field) != "free":
            value = getattr(section, name)
            kept[name] = science(value) if isinstance(value, BaseModel) else value
    return json.loads(json.dumps(kept))


def signature(section: BaseModel) -> str:
    """64 hex digits that name the science of a config: equal science, equal signature, whatever the defaults were."""
    canonical = json.dumps(science(section), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
