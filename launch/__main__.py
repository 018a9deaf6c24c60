"""Jobs, from any shell, later:  python -m launch status|logs|wait|cancel|retry|resubmit|submit  (see --help)"""

import sys
from collections.abc import Callable
from pathlib import Path

from conf.argv import split
from conf.door import command_of, explain, guarded
from conf.launchers import BasicLauncher, LaunchConfig
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput, escaped

COMMANDS = ("status", "logs", "wait", "cancel", "retry", "resubmit", "submit")


def main() -> None:
    """Hand the words after the command to its door."""
    command = command_of("launch", COMMANDS)
    if command == "submit":
        guarded("submit", lambda: submit(sys.argv[1:]))
    guarded("launch", lambda: about_jobs(command, sys.argv[1:]))


def submit(words: list[str]) -> int:
    """One run as a job: what follows is what train.py takes."""
    if "--help" in words or "-h" in words:
        return explain("launch")
    flags, overrides = split(words)
    if flags:
        raise BadInput(f"{flags[0]}: submit takes settings of one run; sweeps: python train.py -m hydra/launcher=…")
    from conf.overrides import warn_of_repeats
    from conf.reading import read
    from launch.sweep import run_one

    warn_of_repeats(overrides)
    chosen = any(word.startswith("hydra/launcher=") for word in overrides)
    sweep = read("train", TrainConfig, overrides if chosen else [*overrides, "hydra/launcher=submitit_slurm"])
    if isinstance(sweep.launcher, BasicLauncher):
        raise BadInput("hydra/launcher=basic: runs it here: python train.py …")
    return run_one(sweep)


def about_jobs(command: str, words: list[str]) -> int:
    """What is about a study, or a run of it."""
    if "--help" in words or "-h" in words:
        return explain("launch")
    flags, overrides = split(words)
    if flags:
        raise BadInput(f"{flags[0]}: no such option of python -m launch {command}")
    if any(word.startswith("hydra/launcher") for word in overrides):
        raise BadInput("hydra/launcher: these jobs have theirs; single keys can change: hydra.launcher.timeout_min=…")
    named = [word for word in overrides if "=" not in word or Path(word).exists()]
    if len(named) > 1:
        raise BadInput(f"{escaped(named[1])}: one study or run at a time, or none for the latest")
    from conf.overrides import warn_of_repeats
    from conf.reading import read
    from launch import commands

    warn_of_repeats([word for word in overrides if word not in named])
    settings = [word for word in overrides if word not in named] + [f"target={word}" for word in named]
    asked = read("launch", LaunchConfig, settings)
    calls: dict[str, Callable[[LaunchConfig], int]] = {
        "status": commands.status,
        "logs": commands.logs,
        "wait": commands.wait,
        "cancel": commands.cancel,
    }
    if command in calls:
        return calls[command](asked.points[0].config)
    return commands.again(asked.points[0].config, command, asked.launcher_values)


if __name__ == "__main__":
    main()
