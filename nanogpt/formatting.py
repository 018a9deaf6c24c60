"""Numbers, durations and tables as text for a person."""

from collections.abc import Iterable, Sequence
from typing import Any


def format_duration(duration: float) -> str:
    """Return seconds as `45s`, `3m20s`, `2h05m` or `3d04h`."""
    whole = max(0, round(duration))
    for unit, size, small, part in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{small}"
    return f"{whole}s"


def format_count(number: float, billion: str = "B") -> str:
    """Return a number as `950`, `12.3k`, `4.56M` or `1.2B`; pass `billion="G"` for FLOPs and bytes."""
    for size, unit in ((1e12, "T"), (1e9, billion), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def escape_control_chars(line: str) -> str:
    """Return a line with its control characters written as escapes, so that it can't control the terminal."""
    return "".join(c if c.isprintable() or c in "\t\ufffd" else ascii(c)[1:-1] for c in line)


def shorten(text: str, most: int) -> str:
    """Return at most `most` characters: a third from the beginning, the rest from the end, `…` between them."""
    if len(text) <= most:
        return text
    head = (most - 1) // 3
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def format_value(value: Any) -> str:
    """Return a value as one would type it."""
    if isinstance(value, tuple | list):
        return f"[{','.join(map(format_value, value))}]"  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def format_brief(value: Any) -> str:
    """Return a value for a label, floats with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else format_value(value)


def format_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as text, at most 120 characters wide."""
    from rich.console import Console  # a tenth of a second, for those who print a table
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(*map(Column, map(Text, columns)), title=Text(title), title_justify="left", show_header=any(columns))
    for row in rows:
        table.add_row(*map(Text, row))  # as Text a bracket or a colon in a name is not markup
    console = Console(width=120, color_system=None, force_terminal=False, force_jupyter=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()
