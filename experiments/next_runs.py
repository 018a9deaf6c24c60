"""`nanogpt next`: the next runs of a study, by how much narrower they make its intervals and what they cost."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cli.quoting import format_override
from experiments.best import find_edges
from experiments.find import find_runs
from experiments.ranking import Ranking, SeedGroup, VariedKey, find_varied_keys, group_name, short_names
from experiments.report import ReportData, read_study
from experiments.reproduce import reproduce_command
from launch.study import format_for_name
from nanogpt.config import NextConfig, TrainConfig
from nanogpt.console import print_text
from nanogpt.entry_names import parse_run_name
from nanogpt.errors import BadInput, one_line
from nanogpt.formatting import format_duration, format_table
from nanogpt.json_output import print_result
from nanogpt.metrics_file import as_number
from nanogpt.schema import from_dict
from nanogpt.seed_gains import SeedGain, choose_seeds
from nanogpt.statistics import mean_or_none


@dataclass(frozen=True)
class ProposedRun:
    """A run that does not exist yet."""

    seed: int
    command: str | None
    """Shell command that trains it in the study's folder; None if its config can't be written as one."""


@dataclass(frozen=True)
class Proposal:
    """Runs that belong together, what they are expected to add, and what they cost."""

    setting: str
    why: str
    runs: list[ProposedRun]
    cost_s: float | None
    """Seconds of training steps, as those of the setting's other runs."""
    gain: SeedGain | None = None
    """None for values that were not tried, or if nothing is known about noise."""

    def json_fields(self) -> dict[str, Any]:
        """Return what `format=json` shows."""
        gain = self.gain
        return {
            "setting": self.setting,
            "why": self.why,
            "runs": self.runs,
            "cost_s": self.cost_s,
            "half_width": gain and gain.half_width,
            "half_width_then": gain and gain.half_width_then,
            "gain": gain and gain.gain,
            "gain_per_hour": 3600 * gain.gain / self.cost_s if gain and self.cost_s else None,
        }


@dataclass(frozen=True)
class CommandFinder:
    """Finds commands that train a config with any seed. Each config is composed once."""

    known: dict[str, str | None] = field(default_factory=dict[str, str | None])
    """Commands with seed 0, by config."""

    def find(self, config: TrainConfig, seed: int) -> str | None:
        """Return the command that trains `config` with a seed; None if its config can't be written as one."""
        same = config.model_copy(update={"training": config.training.model_copy(update={"seed": 0})})
        key = same.model_copy(update={"name": None}).model_dump_json()
        if key not in self.known:
            self.known[key] = reproduce_command(same)
        words = [word for word in shlex.split(self.known[key] or "") if not word.startswith("training.seed=")]
        return shlex.join([*words, format_override("training.seed", seed)]) if words else None


@dataclass(frozen=True)
class NextRuns:
    """The next runs of a study."""

    study: str
    best: str
    metric: str
    proposals: list[Proposal]
    notes: list[str]


def propose_runs(config: NextConfig) -> int:
    """Print the next runs of a study. Return 0. Raises BadInput."""
    study = read_study(find_runs(config, latest=True), config.metric, config.tolerance)
    ranking = next((ranking for ranking in study.rankings if ranking.best), None)
    if ranking is None or ranking.best is None:
        raise BadInput(f"{study.title}: no run has finished yet; the command that started the study continues it")
    varied = find_varied_keys(ranking.groups)
    finder = CommandFinder()
    values, seeds = propose_beyond(ranking, varied, finder), propose_seeds(ranking, varied, config.most, finder)
    proposals = list(islice(chain(values, seeds), config.most))
    best = group_name(ranking.best, varied)
    print_result(
        config.format, NextRuns(study.title, best, ranking.metric, proposals, list(find_notes(study))), print_proposals
    )
    return 0


def find_notes(study: ReportData) -> Iterator[str]:
    """Yield what a reader should know beside the proposals."""
    left = sum(not result.finished and result.status.state != "missing" for result in study.results)
    if left:
        yield f"runs that are not finished: {left}; the command that started the study continues them"
    if len(study.rankings) > 1:
        yield "not all runs are comparable: proposals are for the first ranking of the report"
    yield from study.notes


def propose_beyond(ranking: Ranking, varied: Sequence[VariedKey], finder: CommandFinder) -> Iterator[Proposal]:
    """Yield the best setting with a value beyond the edge, for each number of which it has the lowest or highest."""
    best = ranking.best
    assert best is not None, "it is ranked"
    for axis, numbers in find_edges(ranking, varied):
        value = step_beyond(numbers)
        value = round(value) if isinstance(axis.value(best), int) else float(f"{value:.2g}")
        tried = [number for other in ranking.groups if (number := as_number(axis.value(other))) is not None]
        config = change_value(best.first.config, axis.key, value)
        if axis.others or config is None or min(tried) <= value <= max(tried):  # it may have diverged there
            continue
        name = rename(best.first.path.name, short_names(varied)[axis.key], numbers[0], value)
        cost = estimate_cost(best, ranking)
        yield Proposal(
            setting=f"{axis.key}={value:g} instead of {numbers[0]:g} in {group_name(best, varied)}",
            why=f"the best is the {'lowest' if numbers[0] == min(tried) else 'highest'} tried",
            runs=[propose_run(config, best.first.path.parent / name, seed, finder) for seed in best.seeds],
            cost_s=None if cost is None else cost * len(best.seeds),
        )


def step_beyond(numbers: Sequence[float]) -> float:
    """Return the next value after the first of these, the lowest or highest: by the ratio to its neighbour if all are
    positive, else by the difference.
    """
    edge = numbers[0]
    nearest = min((number for number in numbers if number != edge), key=lambda number: abs(number - edge))
    return edge * edge / nearest if min(numbers) > 0 else 2 * edge - nearest


def change_value(config: TrainConfig, key: str, value: float) -> TrainConfig | None:
    """Return a config with another value of a key; None if it is not allowed."""
    values: dict[str, Any] = config.model_dump()
    section, (*path, last) = values, key.split(".")
    for name in path:
        section = section[name]
    section[last] = value
    try:
        return from_dict(TrainConfig, values)
    except BadInput:
        return None


def propose_seeds(
    ranking: Ranking, varied: Sequence[VariedKey], most: int, finder: CommandFinder
) -> Iterator[Proposal]:
    """Yield further seeds for what is not told apart from the best, those first that add most for their time.

    If no setting has two seeds, nothing says what they add: then a second seed for each of the two best.
    """
    fair, judged = ranking.fair, ranking.verdicts
    if judged is None:
        return
    known = [estimate_cost(setting, ranking) for setting in fair]
    costs = [cost or 1.0 for cost in known] if all(known) else [1.0] * len(fair)
    gains = choose_seeds(judged, [len(s.losses(ranking.metric)) for s in fair], costs, most, ranking.level)
    taken = [{r.config.training.seed for r in s.results if r.status.state != "missing"} for s in fair]
    pool = {seed for setting in ranking.groups for seed in setting.seeds}
    for settings, gain in [(gain.settings, gain) for gain in gains] if judged.noise else [([i], None) for i in (0, 1)]:
        runs: list[ProposedRun] = []
        for i in settings:
            seed = min((pool | {max(pool | taken[i]) + 1}) - taken[i])
            taken[i].add(seed)
            runs.append(propose_run(fair[i].first.config, fair[i].first.path, seed, finder))
        yield Proposal(
            setting="every setting" if len(settings) > 1 else group_name(fair[settings[0]], varied),
            why="no setting has two seeds" if gain is None else explain_seed(settings, judged.reference),
            runs=runs,
            cost_s=sum(costs[i] for i in settings) if all(known) else None,
            gain=gain,
        )


def explain_seed(settings: Sequence[int], best: int) -> str:
    if len(settings) > 1:
        return "differences between seeds are removed, so all need the seed"
    return "the best, which is part of every difference" if settings[0] == best else "not told apart from the best"


def estimate_cost(setting: SeedGroup, ranking: Ranking) -> float | None:
    """Return the seconds of training steps of one more run: the mean of the setting's, or else of all finished runs."""
    every = (result.seconds for other in ranking.ranked for result in other.finished)
    return mean_or_none(result.seconds for result in setting.finished) or mean_or_none(every)


def propose_run(config: TrainConfig, path: Path, seed: int, finder: CommandFinder) -> ProposedRun:
    """Return a run with another seed than `config`, whose run directory is `path`."""
    name = rename(path.name, "seed", config.training.seed, seed)
    words = [format_override("name", name), format_override("runs_dir", str(path.parent))]
    command = finder.find(config, seed)
    return ProposedRun(seed, command and f"{command} {shlex.join(words)}")


def rename(run: str, short: str, old: float, new: float) -> str:
    """Return the name of a run with another value of a key, without its digits."""
    parts = parse_run_name(run)
    name, (before, after) = parts[0] if parts else run, (f"{short}{format_for_name(value)}" for value in (old, new))
    return name.replace(before, after) if before in name else f"{name}-{after}"


def print_proposals(found: NextRuns) -> None:
    """Print a table of proposals, and the commands of their runs."""
    rows: list[tuple[str, ...]] = []
    for number, proposal in enumerate(found.proposals, 1):
        gain, hours = proposal.gain, proposal.json_fields()["gain_per_hour"]
        seeds = ", ".join(str(run.seed) for run in proposal.runs[:5]) + (", …" if len(proposal.runs) > 5 else "")
        width = f"{gain.half_width:.4f} -> {gain.half_width_then:.4f}" if gain else ""
        cost = "" if proposal.cost_s is None else format_duration(proposal.cost_s)
        rate = "" if hours is None else f"{hours:.3g}"
        rows.append((str(number), one_line(proposal.setting, 60), seeds, proposal.why, width, cost, rate))
    title = f"{found.study}: the best is {one_line(found.best, 200)}"
    if not rows:
        print_text(f"{title}; nothing to add: every other setting is decided")
    else:
        columns = ("#", "setting", "seeds", "why", "widest ±", "time", "gain/hour")
        print_text(format_table(title, columns, rows) + "\n")
    for number, proposal in enumerate(found.proposals, 1):
        for run in proposal.runs:
            print_text(f"{number}  {run.command or f'seed {run.seed}: no command line reproduces it exactly'}")
    for note in found.notes:
        print_text(f"note    {one_line(note, 500)}")
