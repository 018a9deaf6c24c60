"""A search with Optuna's samplers, by asking and telling: trials that are chosen by what those before came to.

Nothing of Optuna is stored. Before each choice a study is made in memory of all trials that are known, with a sampler
whose seed follows from the next trial's number, so the same results make the same choices, interrupted or not.
"""

import random
import warnings
from collections import Counter
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
from launch.trials import Record, Trial, judge, study_of_trials, trial
from nanogpt.config import Metric, TrainConfig
from nanogpt.console import format_table, say
from nanogpt.errors import STOPPED, BadEnvironment, BadInput, Locked, one_line
from nanogpt.files import hold_lock
from nanogpt.run_state import FAILED

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

SHOWN = 10  # trials in the last table


def search(sweep: Sweep[TrainConfig], sweeper: Search, path: Path, run: Callable[[Study], int]) -> int:
    """Try points until there are as many as asked for. Returns 0 when one of them got to its end.

    `run` trains or submits points and waits for them. Raises LabError, before anything is written.
    """
    space, config = sweep.space, sweep.points[0].config
    assert space is not None
    refuse(config)
    metric = choose_metric(search_plans(space, config), sweeper.metric, "hydra/sweeper=optuna")
    record = Record(path)
    if config.dry_run:
        return plan(sweeper, space, record, run, metric)
    path.mkdir(parents=True, exist_ok=True)
    with hold_lock(path / ".trials.lock", wait=False) as mine:
        if not mine:
            raise Locked(f"{one_line(path)}: another process is searching here")
        record.mend()
        trials = record.trials(space)
        judge(path, trials, metric)
        if sweep.settings.retry:
            for one in trials:
                one.state = "open" if one.state in FAILED else one.state
        say_space(sweeper, space, trials)
        return pursue(sweeper, space, record, trials, run, metric)


def refuse(config: TrainConfig) -> None:
    """What a search can't do. Raises BadInput, BadEnvironment."""
    if config.new_attempt:
        raise BadInput("new_attempt=true: hydra/sweeper=optuna goes on from what is there; give another name")
    if config.stop_at_fraction is not None:
        raise BadInput(
            f"stop_at_fraction={config.stop_at_fraction}: hydra/sweeper=optuna trains every trial to its end"
        )
    if find_spec("optuna") is None:
        raise BadEnvironment("hydra/sweeper=optuna: is not installed: pip install -e '.[optuna]'")


def pursue(
    sweeper: Search,
    space: Space[TrainConfig],
    record: Record,
    trials: list[Trial],
    run: Callable[[Study], int],
    metric: Metric,
) -> int:
    """Train what is open, choose the next, and so on to the end. Returns the exit code.

    Raises BadInput for results that were not measured on the same.
    """
    code = 0
    while True:
        check_comparable([member for one in trials if one.val is not None for member in one.members], metric)
        batch = [one for one in trials if one.state == "open"]
        if not batch and len(trials) < sweeper.trials:
            batch = choose(sweeper, space, record, trials)
            record.add(batch)
            trials += batch
            judge(record.study, batch, metric)  # values that were tried before are there already
        if not batch:
            return conclude(trials, code, metric)
        for one in batch:
            say_trial(one)
        open_ = [one for one in batch if one.state == "open"]
        if not open_:
            continue
        now = run(study_of_trials(record.study, open_))
        if now == STOPPED or now >= 128:
            return now
        judge(record.study, open_, metric)
        if missing := next((one for one in open_ if one.state == "open"), None):
            say(f"trial {missing.number} isn't complete: {one_line(missing.why, 200)}; the same command goes on")
            return now or 1
        code = now or code


def choose(sweeper: Search, space: Space[TrainConfig], record: Record, trials: Sequence[Trial]) -> list[Trial]:
    """The next trials."""
    count = min(sweeper.at_once, sweeper.trials - len(trials))
    asked = ask(sweeper, space.axes, trials, record.count, count)
    return [trial(record.study, space, record.count + place, texts) for place, texts in enumerate(asked, 1)]


def ask(
    sweeper: Search, axes: Sequence[Axis], trials: Sequence[Trial], number: int, count: int
) -> list[dict[str, str]]:
    """The values of the next `count` trials after `number` others. The same arguments give the same values."""
    import optuna
    from optuna.exceptions import ExperimentalWarning

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = random.Random(f"{sweeper.seed}/{number}").getrandbits(32)
    space = {axis.key: distribution(axis) for axis in axes}
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
        study.add_trials([told(one, axes, space) for one in trials])
        asked = [study.ask(space).params for _ in range(count)]
    return [{axis.key: axis.text(params[axis.key]) for axis in axes} for params in asked]


def distribution(axis: Axis) -> "BaseDistribution":
    """An axis in Optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.choices:
        return CategoricalDistribution(axis.choices)
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
    return FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def told(one: Trial, axes: Sequence[Axis], space: "dict[str, BaseDistribution]") -> "FrozenTrial":
    """A trial that has ended in Optuna's words.

    What diverged or can't be is `PRUNED`, which the sampler takes for the worst there is and keeps away from. What
    failed is `FAIL`, from which it learns nothing: a full disk says nothing about the values.
    """
    from optuna.trial import TrialState, create_trial

    states = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL}
    return create_trial(
        state=states.get(one.state, TrialState.PRUNED),
        value=one.val,
        params={axis.key: axis.value(one.texts[axis.key]) for axis in axes},
        distributions=space,
    )


def plan(
    sweeper: Search, space: Space[TrainConfig], record: Record, run: Callable[[Study], int], metric: Metric
) -> int:
    """What would be searched, and what the next trial takes. Writes nothing."""
    trials = record.trials(space)
    judge(record.study, trials, metric)
    say_space(sweeper, space, trials)
    batch = [one for one in trials if one.state == "open"]
    if not batch and len(trials) < sweeper.trials:
        batch = choose(sweeper, space, record, trials)
    first = next((one for one in batch if one.members), None)
    if first is None:
        return 0
    say_trial(first)
    return run(Study(record.study, first.members[:1]))


def say_space(sweeper: Search, space: Space[TrainConfig], trials: Sequence[Trial]) -> None:
    """How much is tried of what, and how much of it is done."""
    seeds = f", each with {len(space.seeds)} seeds" if space.seeds else ""
    done = sum(one.state != "open" for one in trials)
    say(f"search  {sweeper.trials} trials{seeds}, {sweeper.at_once} at once, by {sweeper.sampler}; {done} done")
    for axis in space.axes:
        say(f"        {axis.key}={one_line(axis.override_text, 200)}")


def say_trial(one: Trial) -> None:
    """What is about to be tried, or why it isn't."""
    end = {"open": "", "finished": f": val {one.val}, as before"}.get(one.state, f": {one.state}: {one.why}")
    say(f"trial   {one.number}: {one_line(one.words, 200)}{one_line(end, 300)}")


def conclude(trials: Sequence[Trial], code: int, metric: Metric) -> int:
    """The table of the best trials and the last words. Returns the exit code, 0 when there is a best one."""
    finished = sorted((one for one in trials if one.val is not None), key=lambda one: (one.val, one.number))
    counts = Counter(one.state for one in trials)
    once: dict[str, Trial] = {}
    for one in finished:
        once.setdefault(one.words, one)
    rows = [(str(one.number), f"{one.val:.4f}", one_line(one.words, 200)) for one in list(once.values())[:SHOWN]]
    summary = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    say(format_table(f"{len(trials)} trials: {summary}", ("trial", UNITS[metric], "values"), rows))
    for one in [one for one in trials if one.val is None][:SHOWN]:
        say(f"trial {one.number} {one.state}: {one_line(one.why, 300)}")
    if not finished:
        return code or 1
    runs = ", ".join(one_line(member.run) for member in finished[0].members)
    say(f"best    trial {finished[0].number}, {UNITS[metric]} {finished[0].val:.4f}: {runs}")
    say(f"        {one_line(finished[0].words, 400)}")
    return 0
