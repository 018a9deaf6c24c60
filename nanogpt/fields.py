"""Declare config keys: default, meaning, allowed values, and whether a run that continues may change them."""

from collections.abc import Iterator, Mapping
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field
from pydantic.fields import FieldInfo

Change = Literal["fixed", "guarded", "free"]
NEVER: Any = object()  # no value of the key reproduces earlier behaviour: the key was always there
SINGULAR = {bool: "true or false", int: "integer", float: "number", str: "text", dict: "{key: value}"}
PLURAL = {int: "integers", str: "texts", dict: "{key: value}"}


def knob(
    change: Change,
    default: Any,
    doc: str,
    literal: bool = False,
    earlier: object = NEVER,
    was: str | None = None,
    allowed: str | None = None,
    **limits: Any,
) -> Any:
    """Declare a key with its one-line meaning and what a run that continues may do with it.

    `fixed` never changes within a run, `guarded` only when `resume.allow_change` names it, `free` always. A key that
    isn't free can change the result and belongs to the run's identity. `literal` keys are free text: on the command
    line all that follows `=` is the value, with no quoting rules.

    `earlier` is required for a key that is added after the first release (tests/test_identity.py lists the first
    keys): the value that reproduces what the program did before the key existed. With this value the key adds nothing
    to the identity, so runs made without the key are found again, and a stored config without the key is read as
    having it, whatever the default is.

    `was` is the key's former name. Stored configs with that name are read, the identity is computed with it, and a
    command line or YAML file that uses it gets an error with the new name.

    `allowed` describes the accepted values where the type alone doesn't, in error messages and help pages.
    """
    extra: dict[str, Any] = {"change": change, "literal": literal, "was": was, "allowed": allowed}
    if earlier is not NEVER:
        extra["earlier"] = earlier
    return Field(default, description=doc, json_schema_extra=extra, **limits)


fixed, guarded, free = (partial(knob, change) for change in get_args(Change))


def read_declaration(field: FieldInfo, what: str, default: Any = None) -> Any:
    """Return what `knob` declared of a key under this name, or `default`."""
    extra = field.json_schema_extra
    return extra.get(what, default) if isinstance(extra, Mapping) else default


def is_literal(field: FieldInfo) -> bool:
    """Return whether all that follows `=` on the command line is the value."""
    return bool(read_declaration(field, "literal"))


def change_policy(field: FieldInfo) -> Change | None:
    """Return fixed, guarded or free; None for a field that `knob` did not make."""
    return read_declaration(field, "change")


def earlier_value(field: FieldInfo) -> Any:
    """Return the value that reproduces the behaviour before the key existed, or NEVER for one of the first keys."""
    return read_declaration(field, "earlier", NEVER)


def former_name(field: FieldInfo) -> str | None:
    """Return the name that a key had before, or None."""
    return read_declaration(field, "was")


def describe_allowed(field: FieldInfo) -> str:
    """Return what a key accepts: `one of a, b`, `integer in [1, 1000]`, `number in (0, 10] or null`."""
    members = union_members(field.annotation)
    kinds = [kind for kind in members if kind is not NoneType]
    allowed = read_declaration(field, "allowed")
    words = [allowed] if allowed else [describe_kind(kind, field.metadata, len(kinds) == 1) for kind in kinds]
    return " or ".join([*words, *(["null"] if NoneType in members else [])])


def describe_kind(kind: Any, limits: list[Any], alone: bool) -> str:
    """Return what a type accepts within `limits`; unless it is `alone`, choices go without "one of"."""
    if get_origin(kind) is Annotated:
        kind, *inner = get_args(kind)
        limits = [*limits, *inner]
    if choices := literal_choices(kind):
        several = "a list of " if get_origin(kind) is tuple else "one of " if alone else ""
        return several + ", ".join(choices)
    if get_origin(kind) is tuple:
        return f"a list of {PLURAL[bare_type(get_args(kind)[0])]}"
    return SINGULAR[bare_type(kind)] + describe_bounds(limits)


def bare_type(kind: Any) -> Any:
    """Return `int` for `Annotated[int, …]`, `dict` for `dict[str, Any]`."""
    while get_origin(kind) is not None:
        kind = get_args(kind)[0] if get_origin(kind) is Annotated else get_origin(kind)
    return kind


def describe_bounds(limits: list[Any]) -> str:
    """Return ` in [1, 1000]`, with a large power of two as `2^53`; empty without bounds."""
    bounds = dict(iter_bounds(limits))
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None and high is None:
        return ""
    left = f"[{low}" if "ge" in bounds else f"({low}" if "gt" in bounds else "(-inf"
    if isinstance(high, int) and high >= 2**31 and high.bit_count() == 1:
        high = f"2^{high.bit_length() - 1}"
    right = f"{high}]" if "le" in bounds else f"{high})" if "lt" in bounds else "inf)"
    return f" in {left}, {right}"


def iter_bounds(limits: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of each bound in annotated_types objects and nested Fields."""
    for limit in limits:
        if isinstance(limit, FieldInfo):
            yield from iter_bounds(limit.metadata)
        for name in ("ge", "gt", "le", "lt"):
            if (value := getattr(limit, name, None)) is not None:
                yield name, value


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union; of any other annotation the annotation itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def named_values(annotation: Any) -> tuple[str, ...]:
    """Return the words that a key takes beside values of other kinds, such as `auto` beside integers."""
    literals = (kind for kind in union_members(annotation) if get_origin(kind) is Literal)
    return tuple(str(word) for kind in literals for word in get_args(kind))


def literal_choices(annotation: Any) -> tuple[str, ...]:
    """Return the choices of a key that takes one of them or a list of them; empty for any other key."""
    kinds = [kind for kind in union_members(annotation) if kind is not NoneType]
    kind = kinds[0] if len(kinds) == 1 else None
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) is Literal else ()
