"""Points that aren't begun, and what a preview says of them."""

from pathlib import Path

from launch.study import PlannedRun
from nanogpt.run_directory import locate_run
from tests.experiments.fake_runs import made_config


def point(folder: Path, **changes: object) -> PlannedRun:
    """A point of the study in `folder`, on bytes, that isn't begun."""
    config = made_config(**{"runs_dir": str(folder)} | changes)
    return PlannedRun(locate_run(config), config)


def line_of(lines: list[str], label: str) -> str:
    (line,) = [line for line in lines if line.startswith(f"{label:<8}")]
    return line
