"""Describe which values a field of a config accepts, for error messages and help pages."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo


def describe_allowed(field: FieldInfo) -> str:
    """What a field takes, in words: `one of a, b`, `integer in [1, 1000]`, `number in (0, 10] or null`."""
    kinds = get_args(field.annotation) or (field.annotation,)
    null = " or null" if type(None) in kinds else ""
    choices = literal_choices(field.annotation)
    if choices:
        several = "a list of " if "tuple" in str(field.annotation) else "one of "
        return several + ", ".join(choices) + null
    null = "".join(f" or {word}" for kind in kinds for word in literal_choices(kind)) + null
    limits = list(field.metadata)
    for kind in kinds:
        limits += getattr(kind, "__metadata__", ())
    bounds = {name: value for limit in iter_constraints(limits) for name, value in limit.items()}
    if "pattern" in bounds:
        return PATTERNS[bounds["pattern"]] + null
    word = next((word for name, word in WORDS.items() if name in str(field.annotation)), "a value")
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None and high is None:
        return word + null
    if "list" in word:
        return word
    left = f"[{low}" if "ge" in bounds else f"({low}" if "gt" in bounds else "(-inf"
    right = f"{high}]" if "le" in bounds else f"{high})" if "lt" in bounds else "inf)"
    return f"{word} in {left}, {right}{null}"


PATTERNS = {
    r"^(auto|cpu|mps|cuda(:[0-9]+)?)$": "auto, cpu, mps, cuda or cuda:N",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits",
}
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


def literal_choices(annotation: Any) -> tuple[str, ...]:
    """The values of a Literal, of an optional one, of a list's elements; none of a Literal among other kinds."""
    parts = get_args(annotation)
    kinds = [part for part in parts if part not in (type(None), ...)]
    if len(kinds) == 1 and get_origin(kinds[0]) is Literal:
        parts = get_args(kinds[0])
    return tuple(part for part in parts if isinstance(part, str))


def iter_constraints(metadata: list[Any]) -> Iterator[dict[str, Any]]:
    """Each constraint as {name: value}, out of annotated_types objects and nested Fields."""
    for one in metadata:
        if isinstance(one, FieldInfo):
            yield from iter_constraints(one.metadata)
        else:
            yield {
                name: value
                for name in ("ge", "gt", "le", "lt", "pattern")
                if (value := getattr(one, name, None)) is not None
            }
