"""Names of the entries that a run or a study holds, matched exactly as this program writes them.

Digits are ASCII and numbers have one spelling, so a stray `step-99`, `step-²`, `step-00000004.bak` or `run-02` is never
taken for a checkpoint or an attempt.
"""

import re
from collections.abc import Iterable

STEP = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,14})")
HIDDEN_STEP = re.compile(rf"\.(?P<kind>tmp|old|del|bad)-(?P<step>{STEP.pattern})(\.[0-9]+)?")
SAMPLE = re.compile(STEP.pattern + r"\.txt")
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
SHORT_DIGITS = 8  # of the signature in the name of a run directory
ATTEMPT = r"[2-9]|[1-9][0-9]{1,8}"  # what follows the dash in the name of a second, third … attempt


def step_name(step: int) -> str:
    """Return the name of a step's checkpoint folder."""
    return f"step-{step:08d}"


def parse_step(name: str) -> int | None:
    """Return the step of a checkpoint folder by its name, or None for any other name."""
    match = STEP.fullmatch(name)
    return int(match[1]) if match else None


def parse_sample_step(name: str) -> int | None:
    """Return the step of a sample file by its name, or None for any other name."""
    match = SAMPLE.fullmatch(name)
    return int(match[1]) if match else None


def parse_number(name: str) -> int | None:
    """Return the number that names a submission or an incident, or None for any other name."""
    return int(name) if NUMBER.fullmatch(name) else None


def parse_run_name(folder: str) -> tuple[str, str, int] | None:
    """Return (name, digits of the signature, number of the attempt) of a run directory, or None for another name."""
    match = re.fullmatch(rf"(.+)-([0-9a-f]{{{SHORT_DIGITS}}})(?:-({ATTEMPT}))?", folder)
    return (match[1], match[2], int(match[3] or 1)) if match else None


def attempt_name(name: str, number: int) -> str:
    """Return the folder name of an attempt."""
    return name if number <= 1 else f"{name}-{number}"


def is_attempt(name: str, other: str) -> bool:
    return other.startswith(name) and re.fullmatch(f"|-({ATTEMPT})", other[len(name) :]) is not None


def choose_attempt(name: str, names: Iterable[str], new_attempt: bool) -> str:
    """Return the latest of the folders `name`, `name`-2, `name`-3 …, or with `new_attempt` the next one."""
    found = [1 if other == name else int(other[len(name) + 1 :]) for other in names if is_attempt(name, other)]
    return attempt_name(name, max(found, default=0) + (1 if new_attempt else 0))
