"""Hyperparameter search with Optuna's samplers through its ask-and-tell interface.

Nothing of Optuna is stored. Before each choice an in-memory study is built from all known trials, with a sampler
seeded by the number of the next trial: the same results lead to the same choices, interrupted or not.
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
from launch.study import Study
from launch.trials import Trial, TrialLog, make_trial, study_of_trials, update_trials
from nanogpt.config import Metric, TrainConfig
from nanogpt.console import print_text
from nanogpt.errors import STOPPED, BadEnvironment, BadInput, Locked, one_line
from nanogpt.files import hold_lock
from nanogpt.formatting import format_table
from nanogpt.run_state import FAILED, count_states

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)

MAX_ROWS = 10  # trials in the last table


def search(sweep: Sweep[TrainConfig], sweeper: Search, path: Path, run: Callable[[Study], int]) -> int:
    """Run trials until there are as many as requested. Return 0 if one finished.

    `run` trains or submits the runs of a study and waits for them. Raise LabError before anything is written.
    """
    space, config = sweep.space, sweep.points[0].config
    assert space is not None
    check_search_possible(config)
    metric = choose_metric(search_plans(space, config), sweeper.metric, "hydra/sweeper=optuna")
    record = TrialLog(path)
    if config.dry_run:
        return preview_search(sweeper, space, record, run, metric)
    path.mkdir(parents=True, exist_ok=True)
    with hold_lock(path / ".trials.lock", wait=False) as mine:
        if not mine:
            raise Locked(f"{one_line(path)}: another process is searching here")
        record.drop_torn_line()
        trials = record.read_trials(space)
        update_trials(path, trials, metric)
        if sweep.settings.retry:
            for one in trials:
                one.state = "open" if one.state in FAILED else one.state
        print_space(sweeper, space, trials)
        return run_search(sweeper, space, record, trials, run, metric)


def check_search_possible(config: TrainConfig) -> None:
    """Raise BadInput or BadEnvironment for settings that a search doesn't support."""
    if config.new_attempt:
        raise BadInput("new_attempt=true: hydra/sweeper=optuna goes on from what is there; give another name")
    if config.stop_at_fraction is not None:
        raise BadInput(
            f"stop_at_fraction={config.stop_at_fraction}: hydra/sweeper=optuna trains every trial to its end"
        )
    if find_spec("optuna") is None:
        raise BadEnvironment("hydra/sweeper=optuna: is not installed: pip install -e '.[optuna]'")


def run_search(
    sweeper: Search,
    space: Space[TrainConfig],
    record: TrialLog,
    trials: list[Trial],
    run: Callable[[Study], int],
    metric: Metric,
) -> int:
    """Train open trials and choose new ones until all are done. Return the exit code.

    Raise BadInput if results were measured on different data.
    """
    code = 0
    while True:
        check_comparable([planned for one in trials if one.val is not None for planned in one.runs], metric)
        batch = [one for one in trials if one.state == "open"]
        if not batch and len(trials) < sweeper.trials:
            batch = choose_trials(sweeper, space, record, trials)
            record.add(batch)
            trials += batch
            update_trials(record.study, batch, metric)  # values that were tried before are there already
        if not batch:
            return print_results(trials, code, metric)
        for one in batch:
            print_trial(one)
        open_ = [one for one in batch if one.state == "open"]
        if not open_:
            continue
        now = run(study_of_trials(record.study, open_))
        if now == STOPPED or now >= 128:
            return now
        update_trials(record.study, open_, metric)
        if missing := next((one for one in open_ if one.state == "open"), None):
            logger.info(
                f"trial {missing.number} isn't complete: {one_line(missing.why, 200)}; the same command goes on"
            )
            return now or 1
        code = now or code


def choose_trials(sweeper: Search, space: Space[TrainConfig], record: TrialLog, trials: Sequence[Trial]) -> list[Trial]:
    """Return the next trials."""
    count = min(sweeper.at_once, sweeper.trials - len(trials))
    asked = suggest_values(sweeper, space.axes, trials, record.count, count)
    return [make_trial(record.study, space, record.count + place, texts) for place, texts in enumerate(asked, 1)]


def suggest_values(
    sweeper: Search, axes: Sequence[Axis], trials: Sequence[Trial], number: int, count: int
) -> list[dict[str, str]]:
    """Return the values of the next `count` trials after `number` others. Deterministic in its arguments."""
    import optuna
    from optuna.exceptions import ExperimentalWarning

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = random.Random(f"{sweeper.seed}/{number}").getrandbits(32)
    space = {axis.key: to_distribution(axis) for axis in axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of constant_liar: keeps trials of one batch apart
        match sweeper.sampler:
            case "tpe":
                sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            case "random":
                sampler = optuna.samplers.RandomSampler(seed)
            case _:
                assert_never(sweeper.sampler)
        study = optuna.create_study(sampler=sampler)
        study.add_trials([to_frozen_trial(one, axes, space) for one in trials])
        asked = [study.ask(space).params for _ in range(count)]
    return [{axis.key: axis.text(params[axis.key]) for axis in axes} for params in asked]


def to_distribution(axis: Axis) -> "BaseDistribution":
    """Return an axis as an Optuna distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.choices:
        return CategoricalDistribution(axis.choices)
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
    return FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def to_frozen_trial(one: Trial, axes: Sequence[Axis], space: "dict[str, BaseDistribution]") -> "FrozenTrial":
    """Return a trial that ended as an Optuna trial.

    Diverged, invalid and excluded trials are `PRUNED`, which the sampler ranks below all others. Failed trials are
    `FAIL`, from which it learns nothing: a full disk says nothing about the values.
    """
    from optuna.trial import TrialState, create_trial

    states = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL}
    return create_trial(
        state=states.get(one.state, TrialState.PRUNED),
        value=one.val,
        params={axis.key: axis.value(one.texts[axis.key]) for axis in axes},
        distributions=space,
    )


def preview_search(
    sweeper: Search, space: Space[TrainConfig], record: TrialLog, run: Callable[[Study], int], metric: Metric
) -> int:
    """Print the search space and preview the next trial. Write nothing. Return the exit code."""
    trials = record.read_trials(space)
    update_trials(record.study, trials, metric)
    print_space(sweeper, space, trials)
    batch = [one for one in trials if one.state == "open"]
    if not batch and len(trials) < sweeper.trials:
        batch = choose_trials(sweeper, space, record, trials)
    first = next((one for one in batch if one.runs), None)
    if first is None:
        return 0
    print_trial(first)
    return run(Study(record.study, first.runs[:1]))


def print_space(sweeper: Search, space: Space[TrainConfig], trials: Sequence[Trial]) -> None:
    """Print the search space and how many trials are done."""
    seeds = f", each with {len(space.seeds)} seeds" if space.seeds else ""
    done = sum(one.state != "open" for one in trials)
    logger.info(f"search  {sweeper.trials} trials{seeds}, {sweeper.at_once} at once, by {sweeper.sampler}; {done} done")
    for axis in space.axes:
        logger.info(f"        {axis.key}={one_line(axis.override_text, 200)}")


def print_trial(one: Trial) -> None:
    """Print the values of a trial, and how it ended if it has."""
    end = {"open": "", "finished": f": val {one.val}, as before"}.get(one.state, f": {one.state}: {one.why}")
    logger.info(f"trial   {one.number}: {one_line(one.settings, 200)}{one_line(end, 300)}")


def print_results(trials: Sequence[Trial], code: int, metric: Metric) -> int:
    """Print the best trials. Return the exit code: 0 if there is one."""
    finished = sorted((one for one in trials if one.val is not None), key=lambda one: (one.val, one.number))
    once: dict[str, Trial] = {}
    for one in finished:
        once.setdefault(one.settings, one)
    rows = [(str(one.number), f"{one.val:.4f}", one_line(one.settings, 200)) for one in list(once.values())[:MAX_ROWS]]
    summary = f"{len(trials)} trials: {count_states(one.state for one in trials)}"
    print_text(format_table(summary, ("trial", UNITS[metric], "values"), rows))
    for one in [one for one in trials if one.val is None][:MAX_ROWS]:
        print_text(f"trial {one.number} {one.state}: {one_line(one.why, 300)}")
    if not finished:
        return code or 1
    runs = ", ".join(one_line(planned.path) for planned in finished[0].runs)
    print_text(f"best    trial {finished[0].number}, {UNITS[metric]} {finished[0].val:.4f}: {runs}")
    print_text(f"        {one_line(finished[0].settings, 400)}")
    return 0
