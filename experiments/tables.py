"""Tables of reports and comparisons: ranked groups, every run, differences in config and measurement."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from experiments.cost import has_prices, price_cell
from experiments.document import Cell, TableBlock
from experiments.metrics import COLUMNS, RUN_COLUMNS
from experiments.ranking import (
    Ranking,
    SeedGroup,
    VariedKey,
    format_assignments,
    group_name,
    identity_values,
    short_name,
)
from experiments.results import RunResult
from experiments.sweep_lines import SweepLines
from nanogpt import schema
from nanogpt.config import Metric, TrainConfig
from nanogpt.errors import one_line
from nanogpt.formatting import format_brief, format_count, format_duration, format_table, format_value, shorten
from nanogpt.measurement import Measurement
from nanogpt.metrics_file import as_number
from nanogpt.statistics import Estimate, mean_or_none, sum_or_none
from nanogpt.verdicts import Verdict, describe_verdict

MAX_KEY_COLUMNS = 6  # varied keys with a column each; more share a column that shows the unusual values
AGAINST_BEST = "minus best"  # title of the column of differences from the best
Column = tuple[str, Callable[[SeedGroup], Cell]]


def ranking_table(ranking: Ranking, varied: Sequence[VariedKey]) -> TableBlock:
    """Return a table with one row per group of seeds; groups without a finished run come last, unranked."""
    settings, ranks = ranking.groups, len(ranking.ranked)
    labels: list[Column] = [(short_name(axis, varied), lambda s, a=axis: value_cell(a, s)) for axis in varied]
    if len(varied) > MAX_KEY_COLUMNS:
        told = describe_unusual(settings, varied)
        labels = [("unlike most", lambda s: Cell(shorten(one_line(told(s), 4000), 100)))]
    if not varied:
        labels = [("run", lambda s: Cell(one_line(s.first.path.name)))]
    if any(setting.attempt > 1 for setting in settings):
        labels.append(("attempt", lambda s: Cell(str(s.attempt), s.attempt)))
    columns: list[Column] = [*labels, *number_columns(ranking)]
    if any(first_reason(setting) for setting in settings):
        columns.append(("why", why_cell))
    rows = [
        [Cell(str(i) if i <= ranks else "", float(i) if i <= ranks else None), *(cell(s) for _, cell in columns)]
        for i, s in enumerate(settings, 1)
    ]
    return TableBlock(["#", *(title for title, _ in columns)], rows, marked=0 if ranking.best else None)


def number_columns(ranking: Ranking) -> list[Column]:
    """Return the measured columns, the ranking metric first; no losses in nats if they aren't comparable."""
    settings = ranking.groups
    units: tuple[Metric, ...] = ("val_loss", "best_val_loss", "val_bpb") if ranking.in_nats else ("val_bpb",)
    metrics = dict.fromkeys((ranking.metric, *units))
    return [
        ("seeds", seeds_cell),
        ("status", status_cell),
        *((COLUMNS[metric], lambda s, m=metric: loss_cell(s, m)) for metric in metrics),
        *verdict_columns(ranking),
        ("steps", lambda s: mean_cell((r.step for r in s.counted), lambda v: f"{v:,.0f}")),
        ("tokens", lambda s: mean_cell((r.tokens for r in s.counted), format_count)),
        ("time", lambda s: mean_cell((r.seconds for r in s.counted), format_step_time)),
        ("tok/s", lambda s: mean_cell((r.tokens_per_second for r in s.counted), format_count)),
        (hours_title(settings), lambda s: total_cell(r.device_seconds for r in s.results if r.step)),
        *([("cost", lambda s: price_cell(s.results))] if any(has_prices(s.results) for s in settings) else []),
    ]


def verdict_columns(ranking: Ranking) -> list[Column]:
    """Return the difference from the best and the verdict; nothing without noise to judge by."""
    if ranking.verdicts is None or ranking.verdicts.noise is None:
        return []
    return [
        (AGAINST_BEST, lambda s: difference_cell(ranking.verdict(s))),
        ("verdict", lambda s: Cell(describe_verdict(v, "best")) if (v := ranking.verdict(s)) else Cell("-")),
    ]


def describe_unusual(found: Sequence[SeedGroup], varied: Sequence[VariedKey]) -> Callable[[SeedGroup], str]:
    """Return a function that names the values in which a group differs from most: `conv=[] lr=0.01`, or `as most`."""
    usual = {axis: Counter(axis.text(group) for group in found).most_common(1)[0][0] for axis in varied}

    def describe(setting: SeedGroup) -> str:
        odd = [axis for axis in varied if axis.text(setting) != usual[axis]]
        return format_assignments(setting, odd, varied) or "as most"

    return describe


def difference_cell(verdict: Verdict | None) -> Cell:
    """Return e.g. `+0.0123 ± 0.0200`."""
    if verdict is None or verdict.kind == "reference":
        return Cell("" if verdict else "-")
    half = "" if verdict.half is None else f" ± {verdict.half:.4f}"
    return Cell(f"{verdict.difference:+.4f}{half}", verdict.difference)


def lines_table(sweep: SweepLines, varied: Sequence[VariedKey], metric: Metric) -> TableBlock:
    """Return the best and the highest stable value of each line, and the first above it at which a seed diverged."""
    names = [axis for axis in (sweep.panel, sweep.line) if axis]
    x = short_name(sweep.x, varied)
    rows: list[list[Cell]] = []
    for line in sweep.lines:
        best, stable, diverged = line.best(metric), line.highest_stable, line.first_diverged
        top = " (highest tried)" if stable is line.settings[-1] else ""
        rows.append(
            [
                *(value_cell(axis, line.settings[0]) for axis in names),
                value_cell(sweep.x, best),
                Cell("-") if best is None else loss_cell(best, metric),
                replace(cell := value_cell(sweep.x, stable), text=cell.text + top),
                value_cell(sweep.x, diverged),
            ]
        )
    columns = (f"best {x}", COLUMNS[metric], f"highest stable {x}", "diverged from")
    return TableBlock([*(short_name(axis, varied) for axis in names), *columns], rows)


def format_step_time(time: float) -> str:
    """Return e.g. `3.2s`, with decimals below 20 s."""
    return f"{time:.2g}s" if time < 1 else f"{time:.1f}s" if time < 20 else format_duration(time)


def hours_title(settings: Sequence[SeedGroup]) -> str:
    kinds = {result.gpu for setting in settings for result in setting.results if result.step}
    return {frozenset({True}): "GPU-hours", frozenset({False}): "CPU-hours"}.get(frozenset(kinds), "device-hours")


def value_cell(axis: VariedKey, setting: SeedGroup | None) -> Cell:
    """Return the cell of the varied values, sorted by the first as a number if it is one."""
    if setting is None:
        return Cell("-")
    text = ", ".join(format_brief(setting.values.get(key)) for key in axis.label_keys)
    return Cell(shorten(one_line(text, 4000), 60), as_number(axis.value(setting)))


def seeds_cell(setting: SeedGroup) -> Cell:
    done, n = len(setting.finished), len(setting.results)
    return Cell(str(n) if done in (0, n) else f"{done} of {n}", n)


def loss_cell(setting: SeedGroup, metric: Metric) -> Cell:
    """Return the loss; for runs in progress with their step."""
    cell = estimate_cell(setting.loss(metric))
    if setting.finished or cell.value is None:
        return cell
    return Cell(f"({cell.text} at step {max(r.evals[-1]['step'] for r in setting.counted):,.0f})", cell.value)


def estimate_cell(found: Estimate | None) -> Cell:
    """Return e.g. `2.5137 ± 0.0719`; without an interval for a single value."""
    if found is None:
        return Cell("-")
    return Cell(f"{found.mean:.4f}" + ("" if found.half is None else f" ± {found.half:.4f}"), found.mean)


def mean_cell(values: Iterable[float | None], write: Callable[[float], str]) -> Cell:
    known = mean_or_none(values)
    return Cell("-") if known is None else Cell(write(known), known)


def total_cell(values: Iterable[float | None]) -> Cell:
    """Return the hours of all seeds together; unknown if one is."""
    seconds = sum_or_none(values)
    return Cell("-") if seconds is None else Cell(f"{seconds / 3600:.3g}", seconds / 3600)


def status_cell(setting: SeedGroup) -> Cell:
    """Return `finished`, or counts per state, finished first; and what is wrong with a loss."""
    counts = sorted(setting.states.items(), key=lambda item: item[0] != "finished")
    words = counts[0][0] if len(counts) == 1 else ", ".join(f"{count} {state}" for state, count in counts)
    trouble = next((result.trouble.description for result in setting.results if result.trouble), "")
    return Cell(f"{words}, {trouble}" if trouble else words)


def first_reason(setting: SeedGroup) -> str:
    return next((r.status.why for r in setting.results if r.status.why and not r.finished), "")


def why_cell(setting: SeedGroup) -> Cell:
    return Cell(one_line(first_reason(setting), 100) or "-")


def run_table(results: Sequence[RunResult]) -> TableBlock:
    """Return a table with one row per run."""
    rows = [
        [
            Cell(one_line(r.path.name, 120)),
            Cell(str(r.config.training.seed), r.config.training.seed),
            Cell(f"{r.status.state}, {r.trouble.description}" if r.trouble else r.status.state),
            Cell(f"{r.step:,} of {r.status.steps:,}" if r.status.steps else f"{r.step:,}", r.step),
            *(Cell("-") if (value := r.value(m)) is None else Cell(f"{value:.4f}", value) for m in RUN_COLUMNS),
            mean_cell([r.epochs], lambda epochs: f"{epochs:.3g}"),
            mean_cell([r.seconds], format_step_time),
            mean_cell([r.tokens_per_second], format_count),
        ]
        for r in results
    ]
    return TableBlock(("run", "seed", "state", "step", *RUN_COLUMNS.values(), "epochs", "time", "tok/s"), rows)


def trouble_table(results: Sequence[RunResult]) -> TableBlock | None:
    """Return runs that aren't finished, the reason and the log."""
    rows = [
        [
            Cell(one_line(r.path.name, 120)),
            Cell(r.status.state),
            Cell(one_line(r.status.why, 500) or "-"),
            Cell(one_line(r.status.log) if r.status.log else "-"),
        ]
        for r in results
        if not r.finished
    ]
    return TableBlock(("run", "state", "why", "log"), rows) if rows else None


def differing_keys(configs: Sequence[TrainConfig]) -> list[str]:
    """Return every key whose value differs, those that can change the result first."""
    every = [dict(schema.iter_values(config)) for config in configs]
    first = identity_values(configs[0])
    keys = [key for key in every[0] if len({format_value(values[key]) for values in every}) > 1]
    return sorted(keys, key=lambda key: key not in first)


def config_table(sides: Sequence[tuple[str, RunResult]]) -> TableBlock | None:
    """Return every key that differs, those that can change the result first, and differences in measurement."""
    results = [result for _, result in sides]
    rows = [
        [Cell(key), *(Cell(one_line(format_value(value), 100)) for value in values), Cell(effect)]
        for key, values, effect in differing_values(results)
    ]
    rows += [
        [Cell(name), *(Cell(one_line(value or "not recorded")) for value in values), Cell("yes")]
        for name, values in differing_contents([result.measurement for result in results]).items()
    ]
    return TableBlock(("key", *(label for label, _ in sides), "changes the result"), rows) if rows else None


def differing_values(results: Sequence[RunResult]) -> list[tuple[str, list[Any], str]]:
    """Return every key that differs, its value in each run, and whether it changes the result, in words."""
    configs = [dict(schema.iter_values(result.config)) for result in results]
    first = identity_values(results[0].config)
    alike = {result.measurement.data for result in results}
    same_content = len(alike) == 1 and None not in alike
    found: list[tuple[str, list[Any], str]] = []
    for key in differing_keys([result.config for result in results]):
        effect = "yes" if key in first else "no"
        if key == "data.source" and same_content:
            effect = "no: same content"
        found.append((key, [config[key] for config in configs], effect))
    return found


def differing_contents(found: Sequence[Measurement]) -> dict[str, list[object]]:
    """Return what was measured or used, if it differs: digests of contents, and resolved values."""
    facts: dict[str, list[object]] = {
        "content of the data": [m.data and m.data[:12] for m in found],
        "content of the validation text": [m.text and m.text[:12] for m in found],
        "content of the evaluated windows": [m.windows and m.windows[:12] for m in found],
        "tokenizer": [m.tokenizer and f"{m.tokenizer_label}, {m.tokenizer[:12]}" for m in found],
        "precision used": [m.precision for m in found],
        "fp8 used": [None if m.fp8 is None else format_value(m.fp8) for m in found],
    }
    return {name: values for name, values in facts.items() if len(set(values)) > 1}


def along_table(settings: Sequence[SeedGroup], varied: Sequence[VariedKey]) -> TableBlock | None:
    """Return which values go together, for keys that change together and aren't shown together."""
    rows: list[list[Cell]] = []
    for axis in varied:
        if axis.others and len(axis.label_keys) == 1:
            for value, setting in {format_value(axis.value(s)): s for s in reversed(settings)}.items():
                words = ", ".join(f"{key}={format_value(setting.values[key])}" for key in axis.others)
                rows.append([Cell(axis.key), Cell(one_line(value, 60)), Cell(one_line(words, 1000))])
    return TableBlock(("varied", "value", "changes with it"), rows[::-1]) if rows else None


def group_label(setting: SeedGroup, varied: Sequence[VariedKey]) -> str:
    return one_line(group_name(setting, varied), 120)


def to_terminal(page_table: TableBlock, title: str, without: Collection[str] = ()) -> str:
    """Return a table as text for a terminal."""
    kept = [i for i, column in enumerate(page_table.columns) if column not in without]
    rows = [[fit_column(row[i].text) for i in kept] for row in page_table.rows]
    return format_table(title, [page_table.columns[i] for i in kept], rows)


def fit_column(text: str, most: int = 44) -> str:
    """Return a text short enough for a column: names keep their end, sentences their beginning."""
    return one_line(text, most) if " " in text else shorten(text, most)
