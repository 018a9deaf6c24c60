"""`python -m experiments report`: what came out of a study, as report.md, report.html, pictures; also while it runs."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.code import code_table
from experiments.command import APART, repeat
from experiments.document import Block, Code, Document, Figure, Heading, Note, refuse_file
from experiments.finding import Found, find
from experiments.pictures.curves import Curve, loss_curves
from experiments.pictures.landscape import landscape
from experiments.progress import look, near
from experiments.ranking import Axis, Setting, axes, ranked, science, settings, shown
from experiments.results import Result, missing, read_all
from experiments.statistics import difference
from experiments.tables import (
    along_table,
    as_text,
    config_table,
    label,
    ranking_table,
    run_table,
    tell_trouble,
    trouble_table,
)
from nanogpt import schema
from nanogpt.config import Metric, ReportConfig, TrainConfig
from nanogpt.errors import BadInput, escaped
from nanogpt.tracking.console import say, seconds

PAGE_ONLY = ("best val", "steps", "tok/s", "why")  # columns that a terminal has no room for
PICTURES = ("curves", "sensitivity", "heatmap", "parallel")  # those of an earlier report go when a new one has others
RIVALS = 5  # settings next to the best that are tested against it
UNDONE = ("missing", "new", "stopped", "lost")  # states that the same command goes on from
WORDS: dict[Metric, str] = {"final": "the validation loss at the end", "best": "the lowest validation loss"}


@dataclass(frozen=True)
class Study:
    """What a report is about."""

    title: str
    results: Sequence[Result]
    problems: Sequence[str]
    good: Sequence[Setting]
    """Settings with a finished run, best first."""
    rest: Sequence[Setting]
    varied: Sequence[Axis]
    metric: Metric

    @property
    def every(self) -> list[Setting]:
        return [*self.good, *self.rest]


def report(config: ReportConfig) -> int:
    """Write it and tell the ranking. Raises BadInput."""
    refuse_file(config.out)
    found = find(config, latest=True)
    folder = place(found, config)
    study = collect(found, config.metric)
    tell(study)  # before it is written: a full disk doesn't take the answer away
    files = Document(f"Report: {study.title}", list(blocks(study, config))).write(folder, "report")
    for name in PICTURES:
        if (old := folder / "plots" / f"{name}.png") not in files:
            old.unlink(missing_ok=True)
    say("\n" + "\n".join(map(escaped, files)))
    return 0


def tell(study: Study) -> None:
    """The ranking, what went wrong, what can't be read."""
    ranking = ranking_table(study.every, len(study.good), study.varied, study.metric)
    say(as_text(ranking, f"{study.title}: {states(study.results)}", PAGE_ONLY))
    tell_trouble(study.results)
    for problem in study.problems:
        say(f"warning: {problem}")


def place(found: Found, config: ReportConfig) -> Path:
    """Where the report goes: the study's folder, or the one that holds all that was named. Raises BadInput."""
    if config.out is not None:
        return Path(config.out)
    common = Path(os.path.commonpath([path.absolute() for path in found.asked]))
    ours = Path(config.runs_dir).absolute()
    if (
        len(found.asked) > 1
        and not common.is_relative_to(ours)
        and common not in {r.absolute().parent for r in found.runs}
    ):
        raise BadInput("out=null: these runs have no folder of their own; name one, e.g. out=report")
    return near(common)


def collect(found: Found, metric: Metric) -> Study:
    """Read everything. Raises BadInput when nothing can be read."""
    progress, problems = look(found)
    results, unreadable = read_all(progress)
    results += missing(results, found.asked)
    if not results:
        raise BadInput(f"no run can be read: {'; '.join(unreadable)}")
    problems += unreadable
    problems += [f"{escaped(result.path)}: {problem}" for result in results for problem in result.problems]
    groups = settings(results)
    good, rest = ranked(groups, metric)
    names = [path.resolve().name for path in found.asked]
    title = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return Study(escaped(title, 200), results, problems, good, rest, axes(groups), metric)


def states(results: Sequence[Result]) -> str:
    """`23 finished, 1 diverged`."""
    return ", ".join(f"{count} {state}" for state, count in Counter(r.progress.state for r in results).most_common())


def blocks(study: Study, config: ReportConfig) -> Iterator[Block]:
    """The whole page."""
    yield from summary(study)
    yield Heading("Ranking")
    yield ranking_table(study.every, len(study.good), study.varied, study.metric)
    yield Note(explanation(study))
    yield from pictures(study, config)
    yield from best(study)
    if trouble := trouble_table(study.results):
        yield Heading("What isn't finished")
        yield trouble
    yield Heading("Every run")
    yield run_table(study.results)
    yield from differences(study)


def summary(study: Study) -> Iterator[Block]:
    """How much there is, and what of it isn't whole."""
    total = sum(result.seconds or 0.0 for result in study.results)
    yield Note(
        f"{len(study.results)} runs of {len(study.every)} settings: {states(study.results)}. "
        f"{seconds(total)} of training steps. Written {time.strftime('%Y-%m-%d %H:%M')}."
    )
    left = [result for result in study.results if not result.finished]
    if left:
        goes_on = any(result.progress.going or result.progress.state in UNDONE for result in left)
        words = "The study isn't finished" if goes_on else "Not every run came to its end"
        yield Note(
            f"{words}: {states(left)}. Settings without a finished run have no rank; "
            "their numbers, in parentheses, are those of the last evaluation.",
            warning=True,
        )
    for problem in study.problems:
        yield Note(problem, warning=True)


def explanation(study: Study) -> str:
    """How to read the table."""
    seeds = {len(setting.results) for setting in study.every}
    words = [f"Ranked by {WORDS[study.metric]}, in nats per token."]
    if max(seeds) > 1:
        words.append("Numbers are means over the finished seeds, ± half of the mean's 95 % interval (Student's t).")
    if min(seeds) == 1:
        words.append("Where there is one seed there is no interval: how far another seed would be off isn't known.")
    if any(setting.diverged for setting in study.good):
        words.append(
            "Settings of which a seed diverged come after those of which none did: the other seeds' mean flatters them."
        )
    words.append(
        "Time is that of the training steps, without evaluating, saving and waiting; hours are time times ranks, of "
        "all seeds together."
    )
    return " ".join(words)


def pictures(study: Study, config: ReportConfig) -> Iterator[Block]:
    """Curves, and the loss over what was varied."""
    curves = [
        Curve(
            label(setting, study.varied),
            setting.counted,
            loss.mean if setting.finished and (loss := setting.loss(study.metric)) else None,
            "finished" if setting.finished else next(iter(setting.states)),
        )
        for setting in study.every
    ]
    yield Heading("Loss curves")
    drawn = loss_curves(curves, config.x)
    if drawn:
        yield Figure(drawn)
    else:
        why = "no run has a row yet" if config.x in ("steps", "tokens") else f"no run has rows with its {config.x}"
        yield Note(f"Nothing to draw: {why}.")
    over = landscape(study.every, study.varied, study.metric)
    if over:
        yield Heading("What was varied")
        yield Figure(over)


def best(study: Study) -> Iterator[Block]:
    """The best setting and how to have it again."""
    yield Heading("The best")
    if not study.good:
        yield Note("No run is finished yet.")
        return
    setting = study.good[0]
    result = setting.finished[0]
    yield Note(f"{label(setting, study.varied)}: {WORDS[study.metric]} is {loss_words(setting, study.metric)}.")
    if rivals := rivals_note(study):
        yield rivals
    if edge := edge_note(study):
        yield edge
    command = repeat(result.config)
    if command is None:
        yield Note(f"No command line is known to repeat it; {escaped(result.path / 'config.json')} has its settings.")
        return
    seed = f", with seed {result.config.training.seed}" if len(setting.results) > 1 else ""
    yield Note(f"This trains it again{seed}:")
    yield Code(command)


def loss_words(setting: Setting, metric: Metric) -> str:
    found = setting.loss(metric)
    assert found is not None, "it is ranked"
    spread = f" ± {found.half:.4f} over {found.n} seeds" if found.half is not None else " (one seed)"
    return f"{found.mean:.4f}{spread}"


def rivals_note(study: Study) -> Note | None:
    """Which of the next settings may be as good, where seeds can tell. Only the best ones are looked at."""
    first, *others = study.good
    words: list[str] = []
    for other in others[:RIVALS]:
        found = difference(other.losses(study.metric), first.losses(study.metric))
        if found and not found.significant:
            words.append(f"{label(other, study.varied)} ({found.mean:+.4f}, p={found.p:.2g})")
    if not words:
        return None
    return Note(f"The seeds don't tell it from {', '.join(words)}: so much may be chance (Welch's test).")


def edge_note(study: Study) -> Note | None:
    """Which values of the best setting are the lowest or highest that were tried, where others could be."""
    fields = dict(schema.leaves(TrainConfig))
    words: list[str] = []
    for axis in study.varied:
        values = [axis.value(setting) for setting in study.good]
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if axis.key.startswith("training.") or len(numbers) < len(values) or len(set(numbers)) < 2:
            continue  # more training is always better
        best, limits = numbers[0], [getattr(limit, "ge", None) for limit in fields[axis.key].metadata]
        if best in (min(numbers), max(numbers)) and best not in limits:
            words.append(f"{axis.key}={best:g} is the {'lowest' if best == min(numbers) else 'highest'}")
    return Note(f"Of what was tried {' and '.join(words)}: the best may lie beyond.") if words else None


def differences(study: Study) -> Iterator[Block]:
    """What varied, what all have in common, which code made it."""
    yield Heading("Settings and code")
    if together := along_table(study.every, study.varied):
        yield together
    every = [(str(i), result) for i, result in enumerate(study.results)]
    varied = {key for axis in study.varied for key in (axis.key, *axis.along)}
    other = config_table(every)
    apart = [str(row[0].text) for row in other.rows if row[0].text not in varied] if other else []
    apart = [key for key in apart if key not in science(study.results[0].config)]
    if apart:
        yield Note(f"Also different, without an effect on results: {', '.join(apart)}.")
    yield Code(common(study.results, varied), "What all runs have in common")
    code = code_table(study.results)
    if code:
        if len(code.rows) > 1:
            yield Note("The runs were not all made with the same code or on the same kind of machine.", warning=True)
        yield code


def common(results: Sequence[Result], varied: set[str]) -> str:
    """The settings that are the same everywhere."""
    configs = [dict(schema.values(result.config)) for result in results]
    same = [key for key in configs[0] if len({shown(config[key]) for config in configs}) == 1 and key not in varied]
    return "\n".join(f"{key}={shown(configs[0][key])}" for key in same if key not in APART)
