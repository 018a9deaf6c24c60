"""Reject a study whose runs were trained in another precision than it asks for, before anything starts."""

from collections.abc import Sequence

from launch.study import PlannedRun
from nanogpt.config import HardwareConfig
from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.run_identity import known_precision, read_starts, recorded_precision


def check_precisions(runs: Sequence[PlannedRun], here: bool) -> None:
    """Raise BadCheckpoint if a point's run, finished or not, was trained in another precision than it would be now, on
    this machine if `here`, else as far as the config determines it.
    """
    for run in runs:
        hardware, allowed = run.config.hardware, run.config.resume.allow_change
        precision, _ = recorded_precision(read_starts(run.path))
        if run.config.new_attempt or precision is None or "hardware.precision" in allowed:
            continue
        wanted = find_precisions(hardware, here)
        if wanted and precision not in wanted:
            raise BadCheckpoint(
                f"hardware.precision={hardware.precision}: {one_line(run.path)} was trained in {one_line(precision)}, "
                f"and would continue in {' or '.join(wanted)}; allowed: hardware.precision={one_line(precision)}, "
                "another name=, or resume.allow_change=[hardware.precision]"
            )


def find_precisions(hardware: HardwareConfig, here: bool) -> tuple[str, ...]:
    """Return the precisions that `hardware` may resolve to; empty if only the machine that trains can tell."""
    known = known_precision(hardware)
    if known is not None:
        return (known,)
    if hardware.device.startswith("cuda"):
        return ("bf16", "fp16")
    if not here:
        return ()
    from nanogpt.device import find_device, find_precision  # torch, only if it has to be asked

    return (find_precision(hardware, find_device(hardware.device), "hardware."),)
