"""Kinds of values that several sections use."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError


def check_file_name(text: str | None) -> str | None:
    """Letters, digits, dot, dash and underscore, so a name can never leave its folder or look like an option."""
    if text is None or (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text) and not text.endswith(".")):
        return text
    raise PydanticCustomError(
        "file_name", "letters, digits, '.', '_' and '-', at most 128, beginning with a letter or digit"
    )


def split_list(value: object) -> object:
    """The parts of a list written as one text, `a,b` or `[a,b]`; anything else as it is."""
    if not isinstance(value, str):
        return (value,) if isinstance(value, int) else value
    inside = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return tuple(part.strip() for part in inside.split(",") if part.strip())


Name = Annotated[str, AfterValidator(check_file_name)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
