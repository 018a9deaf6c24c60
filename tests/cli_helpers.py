"""Every command with the config it takes, and refusals."""

from typing import Any

import pytest

from cli import help
from cli.entry import dispatch
from nanogpt.errors import BadInput

CONFIGS: dict[str, Any] = {command: kind for command, (_, kind) in help.COMMANDS.items()}


def error_message(command: str, words: list[str]) -> str:
    """The message of a refusal; anything else than a LabError with exit code 2 fails."""
    with pytest.raises(BadInput) as error:
        dispatch(command, CONFIGS[command], lambda _: pytest.fail("was run"), words)
    return str(error.value)
