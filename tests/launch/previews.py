"""Points that have not started, and lines of their preview."""

from pathlib import Path
from typing import Any

from launch import forecast as forecasts
from launch.study import PlannedRun
from nanogpt.run_directory import locate_run
from tests.experiments.fake_runs import made_config, write_run

Start = dict[str, object] | None


def point(folder: Path, **changes: object) -> PlannedRun:
    """Return a point of the study in `folder`, on bytes, that has not started."""
    config = made_config(**{"runs_dir": str(folder)} | changes)
    return PlannedRun(locate_run(config), config)


def forecast(*given: Any, **options: Any) -> list[str]:
    """Return the lines of a forecast."""
    return forecasts.forecast(*given, **options).lines()


def line_of(lines: list[str], label: str) -> str:
    (line,) = [line for line in lines if line.startswith(f"{label:<8}")]
    return line


def arithmetic(**changes: object) -> dict[str, object]:
    """Return what a start of the tiny config records about its device."""
    usual = {"device": "cpu", "precision": "fp32", "ranks": 1, "micro_batch_size": 8, "compile": False, "threads": 1}
    return {"arithmetic": usual | changes}


def made(folder: Path, rate: float = 1000.0, start: Start = None, name: str = "run", C: int = 16) -> Path:
    """Write a finished run with this speed."""
    losses, rates, starts = [5.0, 4.0, 3.0, 2.0], [1.0, rate, rate], [start or arithmetic()]
    return write_run(folder, losses, name, rates=rates, starts=starts, config=made_config(**{"model.n_embd": C}))
