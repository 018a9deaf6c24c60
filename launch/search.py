"""Hyperparameter search with Optuna's samplers, through its ask-and-tell interface.

Optuna's state is not stored. Before each choice an in-memory study is built from all earlier trials, with a sampler
seeded by the number of the next trial, so an interrupted search makes the same choices.
"""

import logging
import random
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import assert_never

from cli.search_space import Axis, Space
from cli.sweep_config import Search
from cli.sweep_request import Sweep
from launch.metric_choice import UNITS, check_comparable, choose_metric, search_plans
from launch.preview import build_preview
from launch.study import Study, lock_search
from launch.trials import Trial, TrialLog, make_trial, study_of_trials, update_trials
from nanogpt.config import Metric, TrainConfig
from nanogpt.console import print_text
from nanogpt.errors import STOPPED, BadEnvironment, BadInput, one_line
from nanogpt.formatting import format_table
from nanogpt.json_output import print_result
from nanogpt.run_state import FAILED, count_states

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)

MAX_ROWS = 10  # trials in the last table


def search(sweep: Sweep[TrainConfig], sweeper: Search, path: Path, run: Callable[[Study], int]) -> int:
    """Run trials until there are as many as requested. Return 0 if one finished.

    `run` trains or submits the runs of a study and waits for them. Raises LabError before anything is written.
    """
    space, config = sweep.space, sweep.points[0].config
    assert space is not None
    check_trains_to_end(config, "hydra/sweeper=optuna")
    check_optuna_installed("optuna")
    metric = choose_metric(search_plans(space, config), sweeper.metric, "hydra/sweeper=optuna")
    record = TrialLog(path)
    if config.dry_run:
        return preview_search(sweep, sweeper, space, record, run, metric)
    with lock_search(path):
        record.drop_torn_line()
        trials = record.read_trials(space)
        update_trials(path, trials, metric)
        if sweep.settings.retry:
            for trial in trials:
                trial.state = "open" if trial.state in FAILED else trial.state
        print_space(sweeper, space, trials)
        return run_search(sweeper, space, record, trials, run, metric)


def check_optuna_installed(sweeper: str) -> None:
    """Raise BadEnvironment without Optuna."""
    if find_spec("optuna") is None:
        raise BadEnvironment(f"hydra/sweeper={sweeper}: optuna is not installed: pip install 'optuna>=4,<5'")


def check_trains_to_end(config: TrainConfig, sweeper: str) -> None:
    """Raise BadInput for settings with which a search can't continue, or compare the ends of its runs."""
    if config.new_attempt:
        raise BadInput(f"new_attempt=true: {sweeper} continues the existing search; start anew with another name=")
    if config.stop_at_fraction is not None:
        raise BadInput(f"stop_at_fraction={config.stop_at_fraction}: {sweeper} trains every trial to its end")


def run_search(
    sweeper: Search,
    space: Space[TrainConfig],
    record: TrialLog,
    trials: list[Trial],
    run: Callable[[Study], int],
    metric: Metric,
) -> int:
    """Train open trials and choose new ones until all are done. Return the exit code.

    Raises BadInput if results were measured on different data.
    """
    code = 0
    while True:
        check_comparable([planned for trial in trials if trial.val is not None for planned in trial.runs], metric)
        batch = [trial for trial in trials if trial.state == "open"]
        if not batch and len(trials) < sweeper.trials:
            batch = choose_trials(sweeper, space, record, trials)
            record.add(batch)
            trials += batch
            update_trials(record.study, batch, metric)  # a repeated choice has its result already
        if not batch:
            return print_results(trials, code, metric)
        for trial in batch:
            print_trial(trial)
        open_ = [trial for trial in batch if trial.state == "open"]
        if not open_:
            continue
        batch_code = run(study_of_trials(record.study, open_))
        if batch_code == STOPPED or batch_code >= 128:
            return batch_code
        update_trials(record.study, open_, metric)
        if missing := next((trial for trial in open_ if trial.state == "open"), None):
            logger.info(
                f"trial {missing.number} is incomplete: {one_line(missing.why, 200)}; the same command continues"
            )
            return batch_code or 1
        code = batch_code or code


def choose_trials(sweeper: Search, space: Space[TrainConfig], record: TrialLog, trials: Sequence[Trial]) -> list[Trial]:
    count = min(sweeper.at_once, sweeper.trials - len(trials))
    values = suggest_values(sweeper, space.axes, trials, record.count, count)
    return [make_trial(record.study, space, record.count + number, texts) for number, texts in enumerate(values, 1)]


def suggest_values(
    sweeper: Search, axes: Sequence[Axis], trials: Sequence[Trial], number: int, count: int
) -> list[dict[str, str]]:
    """Return the values of `count` trials that follow `number` others. Deterministic in its arguments."""
    import optuna
    from optuna.exceptions import ExperimentalWarning

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = random.Random(f"{sweeper.seed}/{number}").getrandbits(32)
    space = {axis.key: to_distribution(axis) for axis in axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # constant_liar keeps the trials of a batch apart
        match sweeper.sampler:
            case "tpe":
                sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            case "random":
                sampler = optuna.samplers.RandomSampler(seed)
            case _:
                assert_never(sweeper.sampler)
        study = optuna.create_study(sampler=sampler)
        study.add_trials([to_frozen_trial(trial, axes, space) for trial in trials])
        suggested = [study.ask(space).params for _ in range(count)]
    return [{axis.key: axis.text(params[axis.key]) for axis in axes} for params in suggested]


def to_distribution(axis: Axis) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.choices:
        return CategoricalDistribution(axis.choices)
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
    return FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def to_frozen_trial(trial: Trial, axes: Sequence[Axis], space: "dict[str, BaseDistribution]") -> "FrozenTrial":
    """Return a trial as an Optuna trial.

    Paused trials are `PRUNED`, which the sampler ranks by their last rung and result there, below all finished ones;
    diverged, invalid and excluded ones have no result and rank last. Failed trials are `FAIL`, which it ignores: a full
    disk says nothing about the values.
    """
    from optuna.trial import TrialState, create_trial

    states = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL, "open": TrialState.RUNNING}
    return create_trial(
        state=states.get(trial.state, TrialState.PRUNED),
        value=trial.val,
        params={axis.key: axis.value(trial.texts[axis.key]) for axis in axes},
        distributions=space,
        intermediate_values={} if trial.state == "diverged" else trial.by_rung,
    )


def preview_search(
    sweep: Sweep[TrainConfig],
    sweeper: Search,
    space: Space[TrainConfig],
    record: TrialLog,
    run: Callable[[Study], int],
    metric: Metric,
) -> int:
    """Print the search space and a preview of the next trial; write nothing. Return the exit code."""
    trials = record.read_trials(space)
    update_trials(record.study, trials, metric)
    print_space(sweeper, space, trials)
    batch = [trial for trial in trials if trial.state == "open"]
    if not batch and len(trials) < sweeper.trials:
        batch = choose_trials(sweeper, space, record, trials)
    first = next((trial for trial in batch if trial.runs), None)
    if first is None:
        nothing = build_preview(Study(record.study, []), {}, sweep.settings)
        print_result(sweep.points[0].config.format, nothing, lambda _: None)
        return 0
    print_trial(first)
    return run(Study(record.study, first.runs[:1]))


def print_space(sweeper: Search, space: Space[TrainConfig], trials: Sequence[Trial]) -> None:
    seeds = f", each with {len(space.seeds)} seeds" if space.seeds else ""
    done = sum(trial.state != "open" for trial in trials)
    logger.info(f"search  {sweeper.trials} trials{seeds}, {sweeper.at_once} at once, by {sweeper.sampler}; {done} done")
    for axis in space.axes:
        logger.info(f"        {axis.key}={one_line(axis.override_text, 200)}")


def print_trial(trial: Trial) -> None:
    end = {"open": "", "finished": f": val {trial.val}, from an earlier trial"}.get(
        trial.state, f": {trial.state}: {trial.why}"
    )
    logger.info(f"trial   {trial.number}: {one_line(trial.settings, 200)}{one_line(end, 300)}")


def print_results(trials: Sequence[Trial], code: int, metric: Metric) -> int:
    """Print the best trials. Return the exit code: 0 if there is one."""
    finished = sorted((trial for trial in trials if trial.val is not None), key=lambda trial: (trial.val, trial.number))
    once: dict[str, Trial] = {}
    for trial in finished:
        once.setdefault(trial.settings, trial)
    rows = [
        (str(trial.number), f"{trial.val:.4f}", one_line(trial.settings, 200))
        for trial in list(once.values())[:MAX_ROWS]
    ]
    summary = f"{len(trials)} trials: {count_states(trial.state for trial in trials)}"
    print_text(format_table(summary, ("trial", UNITS[metric], "values"), rows))
    for trial in [trial for trial in trials if trial.val is None][:MAX_ROWS]:
        print_text(f"trial {trial.number} {trial.state}: {one_line(trial.why, 300)}")
    if not finished:
        return code or 1
    runs = ", ".join(one_line(planned.path) for planned in finished[0].runs)
    print_text(f"best    trial {finished[0].number}, {UNITS[metric]} {finished[0].val:.4f}: {runs}")
    print_text(f"        {one_line(finished[0].settings, 400)}")
    return 0
