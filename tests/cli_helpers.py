"""Every command with the config it takes, and refusals."""

from typing import Any

import pytest

from cli import help
from cli.entry import dispatch
from nanogpt.errors import BadInput

DOORS: dict[str, Any] = {door: kind for door, (_, kind) in help.COMMANDS.items()}


def refused(door: str, words: list[str]) -> str:
    """The message of a refusal; anything else than a LabError with exit code 2 fails."""
    with pytest.raises(BadInput) as error:
        dispatch(door, DOORS[door], lambda _: pytest.fail("was run"), words)
    return str(error.value)
