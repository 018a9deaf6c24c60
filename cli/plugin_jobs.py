"""Run jobs and searches with Hydra plugins, through Hydra's own interfaces.

A plugin composes nothing: a job's last override holds the text that its function gets.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from cli.compose import initialize_hydra, register_schemas
from cli.plugin_config import PluginLauncher, PluginSweeper
from nanogpt.config import TrainConfig
from nanogpt.errors import BadEnvironment, LabError, one_line

JOB = "hydra.point="  # begins the override with a job's text; plugins don't print what begins with `hydra.`
SILENT = {"root": None}  # makes Hydra leave logging as it is


class SweepStopped(Exception):
    """A sweep that can't go on now. Its argument is the exit code."""


class JobLoader:
    """Config loader for plugins: returns the config of a job without composing anything."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        config = copy.deepcopy(master_config)
        with open_dict(config):
            config.hydra.overrides.task = [word for word in sweep_overrides if not word.startswith(JOB)]
            for word in sweep_overrides:
                if word.startswith(JOB):
                    config.job = word.removeprefix(JOB)
        return config


@dataclass(frozen=True)
class Task:
    """Calls a function with the text of a job; can be pickled."""

    function: Callable[[str], Any]

    def __call__(self, config: DictConfig) -> Any:
        return self.function(config.job)


def launch_jobs(
    launcher: PluginLauncher, folder: Path, jobs: Sequence[tuple[str, str]], function: Callable[[str], Any]
) -> list[Any]:
    """Call `function` with the text of each job (override to print, text), where the plugin wants to.

    Return what the calls returned, and the exception of a job that failed. Raises BadEnvironment if the plugin fails.
    """
    words = [[shown, JOB + text.replace("$", r"\u0024")] for shown, text in jobs]  # `$` in JSON, not an interpolation
    config = hydra_config(folder)
    with open_dict(config):
        config.hydra.launcher = launcher.config
    try:
        plugin = Plugins.instantiate_launcher(Plugins.instance(), hydra_context(), Task(function), config)
        returns = plugin.launch(words, initial_job_idx=0)
    except Exception as error:
        raise plugin_error(f"hydra/launcher={launcher.name}", error) from None
    return [read_outcome(job) for job in returns]


def read_outcome(job: JobReturn | None) -> Any:
    """Return what a job returned, or the exception that it ended with; None if the plugin doesn't know."""
    try:
        return job.return_value if job else None
    except Exception as error:
        return error


def run_sweeper(
    sweeper: PluginSweeper, folder: Path, arguments: Sequence[str], run: Callable[[list[list[str]]], list[Any]]
) -> None:
    """Let a plugin choose points. `run` gets the overrides of some and returns a number or exception for each.

    Raises SweepStopped or LabError from `run`, BadEnvironment if the plugin fails.
    """
    config, plugins, launcher = hydra_config(folder), Plugins.instance(), PointLauncher(run)
    with open_dict(config):
        config.hydra.sweeper = sweeper.config

    def get_launcher(**_: Any) -> PointLauncher:
        return launcher

    vars(plugins)["instantiate_launcher"] = get_launcher  # which the plugin's setup calls
    try:
        with initialize_hydra():  # a point may choose files
            plugins.instantiate_sweeper(
                hydra_context=hydra_context(), task_function=lambda _: None, config=config
            ).sweep(list(arguments))
    except (LabError, SweepStopped):
        raise
    except Exception as error:
        raise plugin_error(f"hydra/sweeper={sweeper.method}", error) from None
    finally:
        del vars(plugins)["instantiate_launcher"]


class PointLauncher(Launcher):
    """The launcher that sweepers get: hands the overrides of points to `run`."""

    def __init__(self, run: Callable[[list[list[str]]], list[Any]]) -> None:
        self.run = run

    def setup(self, *, hydra_context: HydraContext, task_function: Any, config: DictConfig) -> None:
        pass

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        results = self.run([list(words) for words in job_overrides])
        return [
            JobReturn(
                overrides=words,
                status=JobStatus.FAILED if isinstance(result, Exception) else JobStatus.COMPLETED,
                _return_value=result,
            )
            for words, result in zip(job_overrides, results, strict=True)
        ]


def hydra_context() -> HydraContext:
    return HydraContext(cast(ConfigLoader, JobLoader()), Callbacks())


def hydra_config(folder: Path) -> DictConfig:
    """Return Hydra's own configuration, of no file of the user, for jobs whose output goes to `folder`."""
    register_schemas("train", TrainConfig)
    with initialize_hydra():
        config = compose("train", [], return_hydra_config=True)
    config = OmegaConf.masked_copy(config, ["hydra"])
    with open_dict(config):
        config.hydra.sweep.dir, config.hydra.sweep.subdir = str(folder.absolute()), "."
        config.hydra.job.name = folder.name
        config.hydra.output_subdir = None
        config.hydra.job_logging = config.hydra.hydra_logging = SILENT
    return config


def plugin_error(what: str, error: Exception) -> BadEnvironment:
    return BadEnvironment(f"{what}: {type(error).__name__}: {one_line(error, 500)}")
