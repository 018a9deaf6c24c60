"""What a check finds out. Whatever it raises is a finding too, so one check never stops the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nanogpt.config import DoctorConfig
from nanogpt.errors import LabError, one_line
from nanogpt.redaction import redact

State = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    state: State
    what: str
    remedy: str = ""
    """What to do, where it isn't `ok`."""


@dataclass(frozen=True)
class Check:
    """Something to find out."""

    call: Callable[[DoctorConfig], Finding]
    """Raises where something is wrong."""
    remedy: str
    """What to do then."""


def run_check(check: Check, config: DoctorConfig) -> Finding:
    """What the check finds, an error's last line included, without the values of variables that name secrets."""
    try:
        found = check.call(config)
    except (Exception, SystemExit) as error:
        found = Finding("failed", last_line(error), check.remedy)
    return Finding(found.state, redact(found.what), redact(found.remedy))


def last_line(error: BaseException) -> str:
    """The end of an error's message; its kind too, where it wasn't foreseen."""
    lines = str(error).strip().splitlines()
    kind = "" if isinstance(error, LabError) else type(error).__name__
    return one_line(": ".join(filter(None, [kind, lines[-1].strip() if lines else ""])), 400)
