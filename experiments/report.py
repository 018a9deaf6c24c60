"""`nanogpt report`: what came out of a study, as report.md, report.html, pictures; also while it runs."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.code_diff import code_table
from experiments.document import Block, Code, Document, Figure, Heading, Note
from experiments.find import Found, find
from experiments.plots.curves import Curve, loss_curves
from experiments.plots.sweep_plots import landscape
from experiments.progress import look, near
from experiments.ranking import LABELS, Axis, Ranking, Setting, axes, rankings, science, settings, shown
from experiments.reproduce import APART, repeat
from experiments.results import Result, missing, read_all
from experiments.statistics import difference
from experiments.tables import (
    COLUMNS,
    along_table,
    as_text,
    differing_keys,
    label,
    ranking_table,
    run_table,
    tell_trouble,
    trouble_table,
)
from nanogpt import schema
from nanogpt.config import Metric, ReportConfig, TrainConfig
from nanogpt.console import format_duration, say
from nanogpt.errors import BadInput, one_line
from nanogpt.output_paths import check_output_folder

PAGE_ONLY = ("best val", "best bits/byte", "steps", "tok/s", "why")  # columns that a terminal has no room for
PICTURES = ("curves", "sensitivity", "heatmap", "parallel")  # those of an earlier report go when a new one has others
RIVALS = 5  # settings next to the best that are tested against it
UNDONE = ("missing", "new", "stopped", "lost")  # states that the same command goes on from
WORDS: dict[Metric, str] = {
    "val_loss": "the validation loss at the end, in nats per token",
    "best_val_loss": "the lowest validation loss, in nats per token",
    "val_bpb": "bits per byte of the validation text at the end",
    "best_val_bpb": "the lowest bits per byte of the validation text",
}


@dataclass(frozen=True)
class Study:
    """What a report is about."""

    title: str
    results: Sequence[Result]
    problems: Sequence[str]
    rankings: Sequence[Ranking]
    """One, or several where not all results are comparable."""
    notes: Sequence[str]
    """Which results are not comparable, and why."""

    @property
    def every(self) -> list[Setting]:
        return [setting for ranking in self.rankings for setting in ranking.every]


def report(config: ReportConfig) -> int:
    """Write it and tell the ranking. Raises BadInput."""
    check_output_folder("out", config.out)
    found = find(config, latest=True)
    folder = place(found, config)
    check_output_folder("out", folder)
    study = collect(found, config.metric)
    tell(study)  # before it is written: a full disk doesn't take the answer away
    files = Document(f"Report: {study.title}", list(blocks(study, config))).write(folder, "report")
    for name in PICTURES:
        for old in [*folder.glob(f"plots/{name}.png"), *folder.glob(f"plots/{name}-[0-9]*.png")]:
            if old not in files:
                old.unlink(missing_ok=True)
    say("\n" + "\n".join(map(one_line, files)))
    return 0


def tell(study: Study) -> None:
    """The ranking, what went wrong, what can't be read."""
    for note in study.notes:
        say(f"note: {one_line(note, 1000)}")
    for ranking in study.rankings:
        title = f"{study.title}: {one_line(ranking.title, 200) or states(study.results)}"
        first = COLUMNS[ranking.metric]
        without = [column for column in PAGE_ONLY if column != first]
        say(as_text(ranking_table(ranking, axes(ranking.every)), title, without))
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
    problems += [f"{one_line(result.path)}: {problem}" for result in results for problem in result.problems]
    ranked, notes = rankings(settings(results), metric)
    names = [path.resolve().name for path in found.asked]
    title = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return Study(one_line(title, 200), results, problems, ranked, notes)


def states(results: Sequence[Result]) -> str:
    """`23 finished, 1 diverged`."""
    return ", ".join(f"{count} {state}" for state, count in Counter(r.progress.state for r in results).most_common())


def blocks(study: Study, config: ReportConfig) -> Iterator[Block]:
    """The whole page."""
    yield from summary(study)
    for note in study.notes:
        yield Note(one_line(note, 1000), warning=True)
    for number, ranking in enumerate(study.rankings, 1):
        yield from ranking_blocks(ranking, config, "" if number == 1 else f"-{number}")
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
        f"{format_duration(total)} of training steps. Written {time.strftime('%Y-%m-%d %H:%M')}."
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


def ranking_blocks(ranking: Ranking, config: ReportConfig, suffix: str) -> Iterator[Block]:
    """A ranking with its pictures and its best setting. `suffix` tells its pictures from those of other rankings."""
    varied, where = axes(ranking.every), f": {one_line(ranking.title, 200)}" if ranking.title else ""
    yield Heading(f"Ranking{where}")
    yield ranking_table(ranking, varied)
    yield Note(explanation(ranking))
    yield from pictures(ranking, varied, config, where, suffix)
    yield Heading(f"The best{where}")
    yield from best(ranking, varied)


def explanation(ranking: Ranking) -> str:
    """How to read the table."""
    seeds = {len(setting.results) for setting in ranking.every}
    words = [f"Ranked by {WORDS[ranking.metric]}."]
    if max(seeds) > 1:
        words.append("Numbers are means over the finished seeds, ± half of the mean's 95 % interval (Student's t).")
    if min(seeds) == 1:
        words.append("Where there is one seed there is no interval: how far another seed would be off isn't known.")
    if any(setting.diverged for setting in ranking.good):
        words.append(
            "Settings of which a seed diverged come after those of which none did: the other seeds' mean flatters them."
        )
    words.append(
        "Time is that of the training steps, without evaluating, saving and waiting; hours are time times ranks, of "
        "all seeds together."
    )
    return " ".join(words)


def pictures(
    ranking: Ranking, varied: Sequence[Axis], config: ReportConfig, where: str, suffix: str
) -> Iterator[Block]:
    """Curves, and the loss over what was varied."""
    curves = [
        Curve(
            label(setting, varied),
            setting.counted,
            loss.mean if setting.finished and (loss := setting.loss(ranking.metric)) else None,
            "finished" if setting.finished else next(iter(setting.states)),
        )
        for setting in ranking.every
    ]
    yield Heading(f"Loss curves{where}")
    drawn = loss_curves(curves, config.x, f"curves{suffix}", ranking.in_nats)
    if drawn:
        yield Figure(drawn)
    else:
        why = "no run has a row yet" if config.x in ("steps", "tokens") else f"no run has rows with its {config.x}"
        yield Note(f"Nothing to draw: {why}.")
    over = landscape(ranking.every, varied, ranking.metric)
    if over:
        yield Heading(f"What was varied{where}")
        yield Figure(replace(over, name=f"{over.name}{suffix}"))


def best(ranking: Ranking, varied: Sequence[Axis]) -> Iterator[Block]:
    """The best setting and how to have it again."""
    setting = ranking.best
    if setting is None:
        yield Note("Every finished run diverged." if ranking.good else "No run is finished yet.")
        return
    result = next(one for one in setting.finished if one.trouble is None or not one.trouble.diverged)
    yield Note(f"{label(setting, varied)}: {WORDS[ranking.metric]} is {loss_words(setting, ranking.metric)}.")
    if rivals := rivals_note(ranking, varied):
        yield rivals
    if edge := edge_note(ranking, varied):
        yield edge
    command = repeat(result.config)
    if command is None:
        yield Note(f"No command line is known to repeat it; {one_line(result.path / 'config.json')} has its settings.")
        return
    seed = f", with seed {result.config.training.seed}" if len(setting.results) > 1 else ""
    yield Note(f"This trains it again{seed}:")
    yield Code(command)


def loss_words(setting: Setting, metric: Metric) -> str:
    found = setting.loss(metric)
    assert found is not None, "it is ranked"
    spread = f" ± {found.half:.4f} over {found.n} seeds" if found.half is not None else " (one seed)"
    return f"{found.mean:.4f}{spread}"


def rivals_note(ranking: Ranking, varied: Sequence[Axis]) -> Note | None:
    """Which of the next settings may be as good, where seeds can tell. Only the best ones are looked at."""
    first, *others = ranking.good
    words: list[str] = []
    for other in others[:RIVALS]:
        found = difference(other.losses(ranking.metric), first.losses(ranking.metric))
        if found and not found.significant:
            words.append(f"{label(other, varied)} ({found.mean:+.4f}, p={found.p:.2g})")
    if not words:
        return None
    return Note(f"The seeds don't tell it from {', '.join(words)}: so much may be chance (Welch's test).")


def edge_note(ranking: Ranking, varied: Sequence[Axis]) -> Note | None:
    """Which values of the best setting are the lowest or highest that were tried, where others could be."""
    fields = dict(schema.iter_fields(TrainConfig))
    words: list[str] = []
    for axis in varied:
        values = [axis.value(setting) for setting in ranking.good]
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
    together = axes(study.every)
    if along := along_table(study.every, together):
        yield along
    varied = {key for axis in together for key in (axis.key, *axis.along)}
    effect = {*science(study.results[0].config), *APART, *LABELS.values()}
    apart = [key for key in differing_keys([one.config for one in study.results]) if key not in effect]
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
    configs = [dict(schema.iter_values(result.config)) for result in results]
    same = [key for key in configs[0] if len({shown(config[key]) for config in configs}) == 1 and key not in varied]
    return "\n".join(f"{key}={shown(configs[0][key])}" for key in same if key not in APART)
