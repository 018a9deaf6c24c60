"""`nanogpt doctor`: run the checks and print each finding as soon as it is known, in colour on a terminal."""

import sys
from dataclasses import asdict
from typing import Any

from nanogpt.config import DoctorConfig
from nanogpt.doctor import invariants, machine
from nanogpt.doctor.finding import Finding, run_check
from nanogpt.errors import BadEnvironment
from nanogpt.json_output import print_result

CHECKS = machine.CHECKS | invariants.CHECKS
COLOURS = {"ok": 32, "note": 33, "failed": 31}  # ANSI codes of green, yellow, red


def run_checks(config: DoctorConfig) -> int:
    """Run the checks in `config.checks` (empty: all) and print their findings. Return 5 if one failed, else 0."""
    names = [name for name in CHECKS if name in config.checks or not config.checks]
    checks: list[dict[str, Any]] = []
    for name in names:
        found = run_check(CHECKS[name], config)
        print_finding(name, found, max(map(len, names)))
        checks.append({"name": name} | asdict(found) | {"remedy": found.remedy or None})
    failed = [check["name"] for check in checks if check["state"] == "failed"]
    summary = f"{len(failed)} of {len(names)} checks failed: {', '.join(failed)}" if failed else "all is well"
    print_result(config.format, {"checks": checks, "failed": failed}, lambda _: print(f"\n{summary}"))
    return BadEnvironment.exit_code if failed else 0


def print_finding(name: str, found: Finding, width: int) -> None:
    """Print a line with the finding, and below it the remedy. `width` is that of the longest name."""
    state = f"{found.state:<6}"
    if sys.stdout.isatty():
        state = f"\x1b[{COLOURS[found.state]}m{state}\x1b[0m"
    print(f"{state} {name:<{width}}  {found.what}", flush=True)
    if found.remedy:
        print(f"{'':<6} {'':<{width}}  -> {found.remedy}", flush=True)
