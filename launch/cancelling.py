"""Cancel points that are queued or running; they save first."""

from collections.abc import Sequence

from launch import local, slurm
from launch.status import RunStatus
from nanogpt.run_directory import newest_step
from nanogpt.run_state import IN_PROGRESS


def cancel_points(points: Sequence[RunStatus], why: str) -> int:
    """Stop those of the points that are in progress as jobs. Return how many. Raises BadEnvironment.

    The caller holds the lock of the study's records.
    """
    going = [point for point in points if point.state in IN_PROGRESS and point.submission]
    if jobs := list(dict.fromkeys(point.job for point in going if is_on_slurm(point) and point.job)):
        slurm.cancel(jobs)
    for point in going:
        assert point.submission is not None
        point.submission.add_event(point.index, "end", state="cancelled", why=why, step=newest_step(point.path))
        if not is_on_slurm(point):
            local.stop_point(point.job)
    return len(going)


def is_on_slurm(point: RunStatus) -> bool:
    return point.submission is not None and point.submission.spec.executor == "slurm"
