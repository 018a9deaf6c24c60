"""Points of a study on a launcher of an installed Hydra plugin, and searches with a sweeper of one.

Which runs there are, where they are stored and what is left to do is decided as for every study.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from cli.actions import train
from cli.plugin_config import PluginLauncher, PluginSweeper
from cli.plugin_jobs import SweepStopped, launch_jobs, run_sweeper
from cli.search_space import Space
from cli.sweep_config import SweepConfig
from cli.sweep_request import Sweep
from launch.inline import preview_points, print_ends, train_point
from launch.metric_choice import check_comparable, choose_metric, search_plans
from launch.precision_check import check_precisions
from launch.preview import read_states, runs_to_start
from launch.search import check_trains_to_end, print_results, print_trial
from launch.slurm import replace_environment
from launch.snapshot import ROOT
from launch.study import PlannedRun, Study, lock_search, plan_runs, with_fixed_attempt
from launch.trials import Trial, make_trial, study_of_trials, update_trials
from nanogpt import schema
from nanogpt.child_process import python_path
from nanogpt.config import Metric, TrainConfig
from nanogpt.console import show_logs
from nanogpt.data.prepare import check_prepared
from nanogpt.errors import STOPPED, BadInput, Diverged, LabError, one_line
from nanogpt.run_state import FAILED


def run_on_plugin(study: Study, launcher: PluginLauncher, settings: SweepConfig) -> int:
    """Train the points that aren't done, where the plugin wants to. Return the exit code. Raises LabError."""
    check_precisions(study.runs, here=False)
    before = read_states(study)
    if (code := preview_points(study, before, settings, train)) is not None:
        return code
    for data in {planned.config.data.model_dump_json(): planned.config.data for planned in study.runs}.values():
        check_prepared(data)
    ends: dict[Path, tuple[int, str]] = {}
    if waiting := [with_fixed_attempt(planned) for planned in runs_to_start(study.runs, before, settings)]:
        jobs = [(f"name={planned.path.name}", freeze(planned)) for planned in waiting]
        with replace_environment(os.environ | {"PYTHONPATH": python_path(ROOT)}):  # workers import this module
            results = launch_jobs(launcher, study.path, jobs, train_frozen)
        for planned, result in zip(waiting, results, strict=True):
            is_end = isinstance(result, list | tuple)
            ends[planned.path] = tuple(result) if is_end else (1, f"hydra/launcher={launcher.name}: {one_line(result)}")  # pyright: ignore[reportArgumentType]
    code = print_ends(study, ends)
    return STOPPED if any(end == STOPPED for end, _ in ends.values()) else code


def freeze(planned: PlannedRun) -> str:
    """Return a run's config and the working directory as JSON."""
    return json.dumps({"cwd": str(Path.cwd()), "config": planned.config.model_dump(mode="json")})


def train_frozen(text: str) -> tuple[int, str]:
    """Train what `freeze` returned, in any process. Return the exit code and the reason."""
    point = json.loads(text)
    os.chdir(point["cwd"])
    show_logs()
    return train_point(train, schema.from_stored(TrainConfig, point["config"]))


def search_with_plugin(
    sweep: Sweep[TrainConfig], sweeper: PluginSweeper, path: Path, run: Callable[[Study], int]
) -> int:
    """Let a plugin choose points. Return 0 if it comes to its end and a point finished.

    `run` trains or submits the runs of a study and waits for them. Raises LabError, also that of a point if the plugin
    gives up because of it.
    """
    space, config, name = sweep.space, sweep.points[0].config, f"hydra/sweeper={sweeper.method}"
    assert space is not None
    check_trains_to_end(config, name)
    metric = choose_metric(search_plans(space, config), "val_loss", name)
    if config.dry_run:
        return run(Study(path, plan_runs(path, sweep.points)))
    with lock_search(path):
        search = PluginSearch(path, space, metric, bool(sweep.settings.retry), run)
        try:
            run_sweeper(sweeper, path, space.arguments, search.train)
        except SweepStopped as stop:
            return int(stop.args[0])
        return print_results(search.trials, 0, metric)


class PluginSearch:
    """The trials that a plugin has chosen so far."""

    def __init__(
        self, path: Path, space: Space[TrainConfig], metric: Metric, retry: bool, run: Callable[[Study], int]
    ) -> None:
        self.path, self.space, self.retry, self.run = path, space, retry, run
        self.metric: Metric = metric
        self.trials: list[Trial] = []

    def train(self, overrides: list[list[str]]) -> list[float | LabError]:
        """Train the points with these overrides. Return the metric or the error of each. Raises SweepStopped."""
        batch = [self.make_trial(len(self.trials) + number, words) for number, words in enumerate(overrides, 1)]
        self.trials += batch
        update_trials(self.path, batch, self.metric)  # finished in an earlier call
        for trial in batch:
            if trial.state in FAILED and self.retry:
                trial.state = "open"
            print_trial(trial)
        if left := [trial for trial in batch if trial.state == "open"]:
            code = self.run(study_of_trials(self.path, left))
            update_trials(self.path, left, self.metric)
            if code == STOPPED or code >= 128 or any(trial.state == "open" for trial in left):
                raise SweepStopped(code or 1)
        measured = [planned for trial in self.trials if trial.val is not None for planned in trial.runs]
        check_comparable(measured, self.metric)
        return [to_result(trial) for trial in batch]

    def make_trial(self, number: int, words: list[str]) -> Trial:
        """Return a trial of the plugin's overrides; an invalid one if they can't be composed."""
        try:
            texts = self.space.read_overrides(words)
        except BadInput as error:
            return Trial(number, {}, state="invalid", why=str(error))
        return make_trial(self.path, self.space, number, texts)


def to_result(trial: Trial) -> float | LabError:
    """Return the metric of a trial that finished, else its error."""
    if trial.val is not None:
        return trial.val
    kind = {"diverged": Diverged, "failed": LabError}.get(trial.state, BadInput)
    return kind(f"trial {trial.number} {trial.state}: {trial.settings}: {trial.why}")
