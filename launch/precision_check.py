"""Refuse a study whose runs were computed in another precision than it asks for, before anything starts."""

from collections.abc import Sequence

from launch.study import PlannedRun
from nanogpt.config import HardwareConfig
from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.run_identity import known_precision, read_starts, recorded_precision


def check_precisions(runs: Sequence[PlannedRun], here: bool) -> None:
    """Raise BadCheckpoint for a point whose run, finished or not, was computed in another precision than it would be
    now: on this machine if `here`, else as far as the config tells.
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
                f"and this would be {' or '.join(wanted)}; give "
                f"hardware.precision={one_line(precision)}, another name, or resume.allow_change=[hardware.precision]"
            )


def find_precisions(hardware: HardwareConfig, here: bool) -> tuple[str, ...]:
    """Return the precisions that the hardware may come to; none where only the machine would tell."""
    known = known_precision(hardware)
    if known is not None:
        return (known,)
    if hardware.device.startswith("cuda"):
        return ("bf16", "fp16")
    if not here:
        return ()
    from nanogpt.device import find_device, find_precision  # torch, where nothing else tells

    return (find_precision(hardware, find_device(hardware.device), "hardware."),)
