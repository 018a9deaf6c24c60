"""Job commands: parse the words, find the study or run they name, and call the command."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cli.actions import train
from cli.argv import split_flags
from cli.entry import prepare_output, print_help, wants_json
from cli.launcher_config import BasicLauncher, LaunchConfig
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput, one_line

if TYPE_CHECKING:
    from cli.sweep_request import Sweep  # imports Hydra: 0.3 s that --help doesn't wait for


def run_training_sweep(sweep: "Sweep[TrainConfig]") -> int:
    """Run the points of `python train.py -m`, in this process or as jobs. Return the exit code. Raises LabError."""
    from launch.sweep import run_sweep

    return run_sweep(sweep, train)


def run_job_command(command: str, words: list[str]) -> int:
    """Run submit, status, logs, wait, cancel, retry or resubmit. Return the exit code. Raises BadInput."""
    if "--help" in words or "-h" in words:
        return print_help("launch")
    return submit(words) if command == "submit" else run_on_study(command, words)


def submit(words: list[str]) -> int:
    """Submit one run as a job; `words` are those that `train` takes. Return the exit code."""
    flags, overrides = split_flags(words)
    if flags:
        raise BadInput(f"{flags[0]}: submit takes settings of one run; sweeps: nanogpt train -m hydra/launcher=…")
    from cli.overrides import warn_about_repeats
    from cli.sweep_request import read_sweep
    from launch.sweep import submit_single_run

    warn_about_repeats(overrides)
    chosen = any(word.startswith("hydra/launcher=") for word in overrides)
    sweep = read_sweep("train", TrainConfig, overrides if chosen else [*overrides, "hydra/launcher=submitit_slurm"])
    prepare_output(sweep.points[0].config)
    if isinstance(sweep.launcher, BasicLauncher):
        raise BadInput("hydra/launcher=basic: runs it here: nanogpt train …")
    return submit_single_run(sweep)


def run_on_study(command: str, words: list[str]) -> int:
    """Run a job command on a study or one of its runs. Return the exit code."""
    flags, overrides = split_flags(words)
    if flags:
        raise BadInput(f"{flags[0]}: no such option of nanogpt {command}")
    if any(word.startswith("hydra/launcher") for word in overrides):
        raise BadInput("hydra/launcher: these jobs have theirs; single keys can change: hydra.launcher.timeout_min=…")
    named = [word for word in overrides if "=" not in word or Path(word).exists()]
    if len(named) > 1:
        raise BadInput(f"{one_line(named[1])}: one study or run at a time, or none for the latest")
    from cli.overrides import warn_about_repeats
    from cli.sweep_request import read_sweep
    from launch import commands

    warn_about_repeats([word for word in overrides if word not in named])
    settings = [word for word in overrides if word not in named] + [f"target={word}" for word in named]
    asked = read_sweep("launch", LaunchConfig, settings)
    config = asked.points[0].config
    if wants_json(config) and command != "status":
        raise BadInput(f"format=json: nanogpt status prints JSON, nanogpt {command} only text")
    prepare_output(config)
    calls: dict[str, Callable[[LaunchConfig], int]] = {
        "status": commands.status,
        "logs": commands.logs,
        "wait": commands.wait,
        "cancel": commands.cancel,
    }
    if command in calls:
        return calls[command](config)
    return commands.resubmit(config, command, asked.launcher_values)
