"""Names of the entries that a run or a study holds, matched exactly as this program writes them.

Digits are ASCII and numbers have one spelling, so a stray `step-99`, `step-²`, `step-00000004.bak` or `run-02` is never
taken for a checkpoint or an attempt.
"""

import re

STEP = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,14})")
HIDDEN_STEP = re.compile(rf"\.(?P<kind>tmp|old|del|bad)-(?P<step>{STEP.pattern})(\.[0-9]+)?")
SAMPLE = re.compile(STEP.pattern + r"\.txt")
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
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
