"""Checks of the doctor and their findings. Whatever a check raises is a finding too, so no check stops the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nanogpt.config import DoctorConfig
from nanogpt.errors import LabError, one_line
from nanogpt.redaction import redact


@dataclass(frozen=True)
class Finding:
    """Result of a check."""

    state: Literal["ok", "note", "failed"]
    what: str
    remedy: str = ""
    """Advice, unless the state is `ok`."""


@dataclass(frozen=True)
class Check:
    """A check, and the advice that is printed after it failed."""

    call: Callable[[DoctorConfig], Finding]
    """Raises if something is wrong."""
    remedy: str


def run_check(check: Check, config: DoctorConfig) -> Finding:
    """Return the finding of a check, of an error its last line. Values of variables that name secrets are hidden."""
    try:
        found = check.call(config)
    except (Exception, SystemExit) as error:
        found = Finding("failed", last_line(error), check.remedy)
    return Finding(found.state, redact(found.what), redact(found.remedy))


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, with the error's class unless it is a LabError."""
    lines = str(error).strip().splitlines()
    kind = "" if isinstance(error, LabError) else type(error).__name__
    return one_line(": ".join(filter(None, [kind, lines[-1].strip() if lines else ""])), 400)
