"""Types that several groups of keys use."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError


def check_file_name(text: str | None) -> str | None:
    """Raise PydanticCustomError for a name that could leave its folder or look like an option."""
    if text is None or (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text) and not text.endswith(".")):
        return text
    raise PydanticCustomError(
        "file_name", "letters, digits, '.', '_' and '-', at most 128, beginning with a letter or digit"
    )


def split_list(value: object) -> object:
    """Return the parts of a list written as one text, `a,b` or `[a,b]`; anything else unchanged."""
    if not isinstance(value, str):
        return (value,) if isinstance(value, int) else value
    inside = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return tuple(part.strip() for part in inside.split(",") if part.strip())


DEVICES = "auto, cpu, mps, cuda or cuda:N"
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$")]
Name = Annotated[str, AfterValidator(check_file_name)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
