"""`nanogpt report`: the results of a study as report.md, report.html and plots; also while it runs."""

import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.best import best_blocks
from experiments.causes import cause_blocks, find_causes
from experiments.cost import describe_cost
from experiments.document import Block, Figure, Heading, Note, Page, TableBlock
from experiments.find import RunSelection, find_runs, read_statuses, relative_to_cwd
from experiments.latex import latex_table
from experiments.metrics import COLUMNS, METRIC_WORDS
from experiments.plots.curves import Band, Curve, loss_curves
from experiments.plots.sweep import plot_sweep
from experiments.ranking import (
    Ranking,
    SeedGroup,
    VariedKey,
    find_varied_keys,
    group_by_seed,
    rank_groups,
    short_names,
)
from experiments.records import describe_lines, describe_setting, to_csv, to_json
from experiments.references import check_runs, make_references, reference_blocks
from experiments.results import RunResult, find_missing_points, read_results
from experiments.settings import settings_blocks
from experiments.sweep_lines import split_into_lines
from experiments.tables import (
    AGAINST_BEST,
    group_label,
    lines_table,
    ranking_table,
    run_table,
    to_terminal,
    trouble_table,
)
from launch.looks import read_looks
from launch.watching import print_failures
from nanogpt.config import Against, CostConfig, Metric, ReportConfig
from nanogpt.console import print_text
from nanogpt.errors import BadInput, one_line
from nanogpt.formatting import format_duration
from nanogpt.output_paths import check_output_folder
from nanogpt.reference import FILE, Reference, load_references
from nanogpt.reference import to_json as references_to_json
from nanogpt.run_state import count_states
from nanogpt.statistics import LEVEL
from nanogpt.verdicts import LOOK_LEVEL, describe_noise

logger = logging.getLogger(__name__)

PAGE_ONLY = ("best val", "best bits/byte", "steps", "tok/s", "why", AGAINST_BEST)  # columns too many for a terminal
PICTURES = ("curves", "sensitivity", "heatmap", "parallel")  # deleted if an earlier report had them and this has not
TABLES = ("ranking", "lines")
UNDONE = ("missing", "new", "stopped", "lost")  # states that the same command continues from


@dataclass(frozen=True)
class ReportData:
    """The contents of a report."""

    title: str
    results: Sequence[RunResult]
    problems: Sequence[str]
    rankings: Sequence[Ranking]
    """One, or several if not all results are comparable."""
    notes: Sequence[str]
    """Reasons why results are not comparable, and how seeds were chosen."""
    references: Sequence[Reference] = ()
    """Curves that runs are compared with."""

    @property
    def states(self) -> str:
        return count_states(result.status.state for result in self.results)

    @property
    def groups(self) -> list[SeedGroup]:
        return [setting for ranking in self.rankings for setting in ranking.groups]


def report(config: ReportConfig) -> int:
    """Write the report and print the ranking. Return 0. Raises BadInput."""
    check_output_folder("out", config.out)
    found = find_runs(config, latest=True)
    folder = output_folder(found, config)
    check_output_folder("out", folder)
    references = load_references(config.reference, config.runs_dir, "reference") if config.reference else []
    study = replace(read_study(found, config.metric, config.tolerance, config.cost), references=references)
    print_report(study)  # before writing: a full disk must not hide the result
    page = Page(f"Report: {study.title}", list(page_blocks(study, config)))
    files = page.write(folder, "report", config.format, dict(data_files(study, page, config.format)))
    remove_earlier(folder, files)
    print_text("\n" + "\n".join(map(one_line, files)))
    return 0


def data_files(study: ReportData, page: Page, formats: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield name and content of the files for other programs."""
    if "csv" in formats:
        varied = find_varied_keys(study.groups)
        yield "ranking.csv", to_csv([describe_setting(s, r, varied) for r in study.rankings for s in r.groups])
        if lines := [line for ranking in study.rankings for line in describe_lines(ranking)]:
            yield "lines.csv", to_csv(lines)
    if "tex" in formats:
        for table in page.blocks:
            if isinstance(table, TableBlock) and table.name:
                yield f"{table.name}.tex", latex_table(table, PAGE_ONLY)
    if "json" in formats:
        notes, checked = (*study.notes, *study.problems), check_runs(study.references, study.results)
        yield "report.json", to_json(study.title, study.results, study.rankings, notes, checked)
    if "reference" in formats:
        yield FILE, references_to_json(make_references(study.title, study.groups))


def remove_earlier(folder: Path, files: Sequence[Path]) -> None:
    """Remove plots and tables of an earlier report in the formats just written, if this report has none of the name."""
    for suffix in {path.suffix for path in files if path.suffix not in (".md", ".html", ".json")}:
        stems = TABLES if suffix in (".csv", ".tex") else [f"plots/{name}" for name in PICTURES]
        for old in (path for stem in stems for end in ("", "-[0-9]*") for path in folder.glob(f"{stem}{end}{suffix}")):
            if old not in files:
                old.unlink(missing_ok=True)


def print_report(study: ReportData) -> None:
    """Print the ranking, what failed and what can't be read."""
    for note in study.notes:
        logger.info(f"note: {one_line(note, 1000)}")
    for ranking in study.rankings:
        title = f"{study.title}: {one_line(ranking.title, 200) or study.states}"
        first = COLUMNS[ranking.metric]
        without = [column for column in PAGE_ONLY if column != first]
        print_text(to_terminal(ranking_table(ranking, find_varied_keys(ranking.groups)), title, without))
    print_failures([result.status for result in study.results])
    for problem in study.problems:
        logger.warning(problem)


def output_folder(found: RunSelection, config: ReportConfig) -> Path:
    """Return the study's folder, or the one that holds everything that was named. Raises BadInput."""
    if config.out is not None:
        return Path(config.out)
    common = Path(os.path.commonpath([path.absolute() for path in found.folders]))
    ours = Path(config.runs_dir).absolute()
    if (
        len(found.folders) > 1
        and not common.is_relative_to(ours)
        and common not in {r.absolute().parent for r in found.runs}
    ):
        raise BadInput("out=null: these runs are in different folders; name a folder, e.g. out=report")
    return relative_to_cwd(common)


def read_study(runs: RunSelection, metric: Metric, tolerance: float = 0, cost: CostConfig | None = None) -> ReportData:
    """Read all runs. Raises BadInput if none can be read."""
    statuses, problems = read_statuses(runs)
    results, unreadable = read_results(statuses, cost)
    results += find_missing_points(results, runs.folders)
    if not results:
        raise BadInput(f"no run can be read: {'; '.join(unreadable)}")
    problems += [*unreadable, *(f"{one_line(r.path)}: {problem}" for r in results for problem in r.problems)]
    looks = [log for study in {path.parent for path in runs.runs} if (log := read_looks(study))]
    groups = group_by_seed(results, {name for log in looks for name in log.dropped})
    ranked, notes = rank_groups(groups, metric, tolerance, LOOK_LEVEL if looks else LEVEL)
    notes = (*notes, *(log.describe() for log in looks))
    names = [path.resolve().name for path in runs.folders]
    title = one_line(", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""), 200)
    return ReportData(title, results, problems, ranked, notes)


def page_blocks(study: ReportData, config: ReportConfig) -> Iterator[Block]:
    """Yield the whole page."""
    yield from summary_blocks(study)
    for note in study.notes:
        yield Note(one_line(note, 1000), warning=True)
    for number, ranking in enumerate(study.rankings, 1):
        yield from ranking_blocks(ranking, config, "" if number == 1 else f"-{number}", study.references)
    yield from reference_blocks(study.references, study.results)
    if trouble := trouble_table(study.results):
        yield Heading("What isn't finished")
        yield trouble
    yield Heading("Every run")
    yield run_table(study.results)
    yield from settings_blocks(study.results, study.groups)


def summary_blocks(study: ReportData) -> Iterator[Block]:
    """Yield how many runs there are and what is incomplete."""
    total = format_duration(sum(result.seconds or 0.0 for result in study.results))
    yield Note(
        f"{len(study.results)} runs of {len(study.groups)} settings: {study.states}. {total} of training steps. "
        f"{describe_cost(study.results)}Written {time.strftime('%Y-%m-%d %H:%M')}."
    )
    left = [result for result in study.results if not result.finished]
    if left:
        can_continue = any(result.status.in_progress or result.status.state in UNDONE for result in left)
        words = "The study isn't finished" if can_continue else "Not every run finished"
        states = count_states(result.status.state for result in left)
        yield Note(
            f"{words}: {states}. Settings without a finished run have no rank; "
            "their numbers, in parentheses, are those of the last evaluation.",
            warning=True,
        )
    for problem in study.problems:
        yield Note(problem, warning=True)


def ranking_blocks(
    ranking: Ranking, config: ReportConfig, suffix: str, references: Sequence[Reference]
) -> Iterator[Block]:
    """Yield a ranking with its plots and its best setting. `suffix` distinguishes plots of several rankings."""
    varied, where = find_varied_keys(ranking.groups), f": {one_line(ranking.title, 200)}" if ranking.title else ""
    yield Heading(f"Ranking{where}")
    yield replace(ranking_table(ranking, varied), name=f"ranking{suffix}")
    yield Note(explain_table(ranking, varied))
    band = next(
        (r.limits for r in references for s in ranking.groups if r.applies_to(s.first.config, s.measurement)), {}
    )
    yield from figure_blocks(ranking, varied, config, where, suffix, band)
    yield from cause_blocks(find_causes(ranking, varied), short_names(varied), where)
    yield Heading(f"The best{where}")
    yield from best_blocks(ranking, varied)


def explain_table(ranking: Ranking, varied: Sequence[VariedKey]) -> str:
    """Return how to read the ranking."""
    seeds = {len(setting.results) for setting in ranking.groups}
    words = [f"Ranked by {METRIC_WORDS[ranking.metric]}."]
    if max(seeds) > 1:
        alone = "" if ranking.verdicts else ", ± half of the mean's 95 % interval (Student's t)"
        words.append(f"Numbers are means over the finished seeds{alone}.")
    if min(seeds) == 1:
        words.append("A single seed has no interval of its own.")
    if any(setting.diverged for setting in ranking.ranked):
        words.append("Settings with a diverged seed come last, unjudged: the mean of their other seeds is biased.")
    if ranking.verdicts and max(seeds) > 1:
        names = [group_label(setting, varied) for setting in ranking.fair]
        words.append(describe_noise(ranking.verdicts.noise, names))
    words.append(
        "Time is that of the training steps, without evaluation, saving and waiting; hours are time times ranks, "
        "summed over seeds."
    )
    return " ".join(words)


def figure_blocks(
    ranking: Ranking, varied: Sequence[VariedKey], config: ReportConfig, where: str, suffix: str, band: Band
) -> Iterator[Block]:
    """Yield the plots of a ranking, and a table of its lines."""
    if {"auto", "curves"} & set(config.plots):
        yield from curve_blocks(ranking, varied, config.x, where, suffix, band)
    lines = split_into_lines(ranking.groups, varied)
    pictures = plot_sweep(ranking.groups, varied, lines, ranking.metric, config.plots)
    missing = sorted(set(config.plots) - {"auto", "curves"} - {picture.name for picture in pictures})
    if pictures or missing or lines:
        yield Heading(f"What was varied{where}")
    yield from (Figure(replace(picture, name=f"{picture.name}{suffix}")) for picture in pictures)
    if missing:
        yield Note(f"Not drawn, because too few or too many keys were varied: {', '.join(missing)}.")
    if lines and (len(lines.lines) > 1 or any(setting.diverged for setting in ranking.groups)):
        yield replace(lines_table(lines, varied, ranking.metric), name=f"lines{suffix}")


def curve_blocks(
    ranking: Ranking, varied: Sequence[VariedKey], x: Against, where: str, suffix: str, band: Band
) -> Iterator[Block]:
    """Yield the loss curves, or why there are none."""
    curves = [
        Curve(
            group_label(setting, varied),
            setting.counted,
            loss.mean if setting.finished and (loss := setting.loss(ranking.metric)) else None,
            "finished" if setting.finished else next(iter(setting.states)),
        )
        for setting in ranking.groups
    ]
    yield Heading(f"Loss curves{where}")
    drawn = loss_curves(curves, x, f"curves{suffix}", ranking.in_nats, band)
    if drawn:
        yield Figure(drawn)
    else:
        why = "no run has a row yet" if x in ("steps", "tokens") else f"{x} is not known for any run"
        yield Note(f"Nothing to draw: {why}.")
