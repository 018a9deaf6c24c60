"""All checks, one after the other."""

from nanogpt.config import DoctorConfig
from nanogpt.doctor import invariants, machine
from nanogpt.doctor.finding import run_check
from nanogpt.doctor.table import Findings
from nanogpt.errors import BadEnvironment

CHECKS = machine.CHECKS | invariants.CHECKS


def run_checks(config: DoctorConfig) -> int:
    """Make the checks that were asked for and show what they find. Returns 0, or 5 when one failed."""
    names = [name for name in CHECKS if name in config.checks or not config.checks]
    failed: list[str] = []
    with Findings(names) as table:
        for name in names:
            found = run_check(CHECKS[name], config)
            table.add(name, found)
            failed += [name] if found.state == "failed" else []
    print(f"\n{len(failed)} of {len(names)} checks failed: {', '.join(failed)}" if failed else "\nall is well")
    return BadEnvironment.exit_code if failed else 0
