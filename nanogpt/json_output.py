"""`format=json`: the result of a command as one JSON document, alone on standard output."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any, Literal, TextIO, TypeVar

from pydantic import BaseModel

from nanogpt.console import HANDLER
from nanogpt.redaction import redact_all

OutputFormat = Literal["text", "json"]
FORMAT_HELP = "text: tables; json: one JSON document on standard output, described in docs/json.md"
Result = TypeVar("Result")


class ReservedStdout:
    """Standard output while only JSON may be written there."""

    stream: TextIO | None = None


def reserve_stdout() -> None:
    """Keep standard output for `print_result`: all else goes to standard error, also from libraries written in C."""
    sys.stdout.flush()
    ReservedStdout.stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


def print_result(output: OutputFormat, result: Result, print_as_text: Callable[[Result], object]) -> None:
    """Print a result by `print_as_text`, or as JSON. Raises OSError if JSON can't be written."""
    if output == "text":
        print_as_text(result)
    elif not HANDLER.muted:
        text = json.dumps(redact_all(to_json_value(result)), indent=1, allow_nan=False)
        print(text, file=ReservedStdout.stream or sys.stdout, flush=True)


def to_json_value(value: Any) -> Any:
    """Return a result as dicts, lists, texts and finite numbers. Numbers that are not finite become None.

    An object is written as its `json_fields()`, a dataclass without that method as its fields.
    """
    if hasattr(value, "json_fields"):
        return to_json_value(value.json_fields())
    if isinstance(value, BaseModel):
        return to_json_value(value.model_dump())
    if is_dataclass(value):
        return {field.name: to_json_value(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return str(value).encode("utf-8", "backslashreplace").decode()  # a path may not be valid Unicode
