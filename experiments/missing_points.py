"""The points that were asked for and never begun, of sweeps without a launcher: their runs remember the command."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nanogpt.config import TrainConfig
from nanogpt.errors import LabError
from nanogpt.schema import signature

MOST_COMMANDS = 20
About = tuple[Path, TrainConfig, Sequence[dict[str, Any]]]


def never_started(runs: Iterable[About], there: set[str]) -> list[tuple[Path, TrainConfig]]:
    """Run directory and config of every planned point that none of the signatures `there` is of.

    A command that can't be read any more, because the program has changed since, or that starts from weights, which
    would have to be read for it, is passed over.
    """
    studies: dict[tuple[str, ...], tuple[Path, set[str]]] = {}
    for path, config, starts in runs:
        command = sweep_command(starts)
        if command and config.init_from == "scratch":
            studies.setdefault(command, (path.parent, set()))[1].add(signature(config))
    found: dict[str, tuple[Path, TrainConfig]] = {}
    for command, (folder, begun) in list(studies.items())[:MOST_COMMANDS]:
        for name, config in points(command, folder, len(begun)):
            found.setdefault(signature(config), (folder / name, config))
    return [about for digits, about in found.items() if digits not in there and not (about[0] / "config.json").exists()]


def sweep_command(starts: Sequence[dict[str, Any]]) -> tuple[str, ...] | None:
    """The words after `python train.py` of the sweep that started a run, if it was one."""
    words = starts[-1].get("command") if starts else None
    if not isinstance(words, list):
        return None
    texts = [str(word) for word in words]  # pyright: ignore[reportUnknownVariableType]
    swept = texts[:1] in (["train.py"], ["nanogpt train"]) and ("-m" in texts or "--multirun" in texts)
    weights = any(word.startswith("init_from=") for word in texts)
    return tuple(texts[1:]) if swept and not weights else None


def points(command: tuple[str, ...], folder: Path, begun: int) -> list[tuple[str, TrainConfig]]:
    """Name and config of a command's points, of a search those it chose, if they belong into a folder of this name;
    none when all have `begun`.
    """
    from cli.sweep_request import count_points, read_sweep
    from launch.study import study_of
    from launch.trials import Record

    words = [word for word in command if not word.startswith("-")]
    try:
        count = count_points("train", TrainConfig, words)
        if count is not None and count <= begun:
            return []
        sweep = read_sweep("train", TrainConfig, words, multirun=True)
        planned = study_of(sweep)
        members = planned.members
        if sweep.space is not None:
            members = [member for one in Record(folder).trials(sweep.space) for member in one.members]
    except (LabError, OSError):
        return []
    if planned.path.name != folder.name:
        return []
    return [(member.run.name, member.config) for member in members]
