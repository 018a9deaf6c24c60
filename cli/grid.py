"""Combine swept values into points: grid, zipped keys, listed points, exclusions."""

from typing import Any

from cli.overrides import Value
from cli.sweep_config import CONDITION
from nanogpt.errors import BadInput, hint, one_line

LinkedValues = tuple[Value, ...]
"""Values of one or several keys that are set together."""


def grid_axes(
    swept: list[list[Value]], points: list[LinkedValues], zipped: tuple[tuple[str, ...], ...]
) -> list[list[LinkedValues]]:
    """Return lists whose combinations, one element of each, are the points: swept keys, zipped keys, listed points.

    Raises BadInput for keys that don't fit together.
    """
    by_key = {values[0].key: values for values in swept}
    found: dict[str, list[LinkedValues]] = {key: [(value,) for value in values] for key, values in by_key.items()}
    taken: set[str] = set()
    for group in zipped:
        keys = [resolve_key(key, by_key) for key in group]
        if again := next((key for key in keys if key in taken or keys.count(key) > 1), None):
            raise BadInput(f"sweep.zip=[{','.join(group)}]: {again} is in it twice")
        taken |= set(keys)
        check_equal_lengths(keys, by_key)
        pairs = zip(*(by_key[key] for key in keys), strict=True)
        found = {key: bundles for key, bundles in found.items() if key not in keys[1:]} | {keys[0]: list(pairs)}
    for key in {value.key for bundle in points for value in bundle} & by_key.keys():
        raise BadInput(f"sweep.points: {key} is in the points and given outside of them too")
    return [*found.values(), *([points] if points else [])]


def resolve_key(name: str, by_key: dict[str, list[Value]]) -> str:
    """Return the swept key with this name, or the only one that ends with it. Raises BadInput."""
    ends = [key for key in by_key if key == name or key.endswith(f".{name}")]
    if name in by_key or len(ends) == 1:
        return name if name in by_key else ends[0]
    why = f"could be {' or '.join(ends)}" if ends else "isn't swept; give it a list of values"
    raise BadInput(f"sweep.zip: {one_line(name)} {why}{hint(name, by_key)}")


def check_equal_lengths(keys: list[str], by_key: dict[str, list[Value]]) -> None:
    """Raise BadInput unless zipped keys have the same number of values."""
    counts = {key: len(by_key[key]) for key in keys}
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{key} has {count}" for key, count in counts.items())
        raise BadInput(f"sweep.zip=[{','.join(keys)}]: {words} values; zipped keys need the same number")


def is_excluded(exclude: tuple[str, ...], facts: dict[str, Any], parse: Any) -> bool:
    """Return whether all comparisons of one of the texts hold for a point. Raises BadInput for an unknown key.

    `facts` has the point's values by key, and the chosen file of each group. `parse` reads an override.
    """
    return any(all(condition_holds(word, facts, parse) for word in text.split()) for text in exclude)


def condition_holds(word: str, facts: dict[str, Any], parse: Any) -> bool:
    """Return whether one comparison holds. Raises BadInput."""
    match = CONDITION.fullmatch(word)
    assert match
    key, sign, text = match.groups()
    if key not in facts:
        raise BadInput(f"sweep.exclude: {one_line(word)}: no such key{hint(key, facts)}")
    try:
        read = parse(f"{key}={text}")
    except BadInput as error:
        raise BadInput(f"sweep.exclude: {error}") from None
    if read.is_sweep_override() or "${" in text:
        raise BadInput(f"sweep.exclude: {one_line(word)}: can compare with one value only")
    value, other = facts[key], read.value()
    if sign in ("=", "!="):
        return values_equal(value, other) == (sign == "=")
    if not (is_number(value) or value is None) or not is_number(other):
        raise BadInput(f"sweep.exclude: {one_line(word)}: {key} is {one_line(value)}; {sign} compares numbers")
    if value is None:
        return False
    return {">": value > other, "<": value < other, ">=": value >= other, "<=": value <= other}[sign]


def values_equal(value: Any, other: Any) -> bool:
    """Return whether values are equal: 1 equals 1.0, and text may be quoted."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    return bool(value == other) or (not is_number(value) and str(value) == str(other))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
