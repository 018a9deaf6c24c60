"""Points of sweeps without a launcher that never started, from the command that their runs recorded."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nanogpt.config import TrainConfig
from nanogpt.errors import LabError
from nanogpt.schema import signature

MOST_COMMANDS = 20
About = tuple[Path, TrainConfig, Sequence[dict[str, Any]]]


def find_never_started(runs: Iterable[About], there: set[str]) -> list[tuple[Path, TrainConfig]]:
    """Return run directory and config of every planned point whose signature isn't in `there`.

    Commands that can't be read any more, because the program has changed, or that start from weights, which would have
    to be read, are skipped.
    """
    studies: dict[tuple[str, ...], tuple[Path, set[str]]] = {}
    for path, config, starts in runs:
        command = sweep_command(starts)
        if command and config.init_from == "scratch":
            studies.setdefault(command, (path.parent, set()))[1].add(signature(config))
    found: dict[str, tuple[Path, TrainConfig]] = {}
    for command, (folder, begun) in list(studies.items())[:MOST_COMMANDS]:
        for name, config in planned_points(command, folder, len(begun)):
            found.setdefault(signature(config), (folder / name, config))
    return [about for digits, about in found.items() if digits not in there and not (about[0] / "config.json").exists()]


def sweep_command(starts: Sequence[dict[str, Any]]) -> tuple[str, ...] | None:
    """Return the words after `python train.py` of the sweep that started a run, or None."""
    words = starts[-1].get("command") if starts else None
    if not isinstance(words, list):
        return None
    texts = [str(word) for word in words]  # pyright: ignore[reportUnknownVariableType]
    swept = texts[:1] in (["train.py"], ["nanogpt train"]) and ("-m" in texts or "--multirun" in texts)
    weights = any(word.startswith("init_from=") for word in texts)
    return tuple(texts[1:]) if swept and not weights else None


def planned_points(command: tuple[str, ...], folder: Path, begun: int) -> list[tuple[str, TrainConfig]]:
    """Return name and config of the points of a command, for a search those it chose, if they belong to a folder of
    this name; empty when all have begun, and for sweep.until, which chooses points as it goes on.
    """
    from cli.sweep_request import count_points, read_sweep
    from launch.study import plan_study
    from launch.trials import TrialLog

    words = [word for word in command if not word.startswith("-")]
    try:
        count = count_points("train", TrainConfig, words)
        if count is not None and count <= begun:
            return []
        sweep = read_sweep("train", TrainConfig, words, multirun=True)
        if sweep.settings.until:  # seeds that no look needed
            return []
        planned = plan_study(sweep)
        planned_runs = planned.runs
        if sweep.space is not None:
            planned_runs = [planned for trial in TrialLog(folder).read_trials(sweep.space) for planned in trial.runs]
    except (LabError, OSError):
        return []
    if planned.path.name != folder.name:
        return []
    return [(planned.path.name, planned.config) for planned in planned_runs]
