"""`nanogpt compare`: runs, or groups of seeds, side by side, also at equal cost."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.code_diff import code_difference
from experiments.comparison import COSTS, Comparison, Gap, Side, find_equal_costs, flops
from experiments.cost import has_prices, price_cell
from experiments.document import Block, Cell, Code, Figure, Heading, Note, Page, TableBlock
from experiments.find import find_runs, read_statuses
from experiments.ranking import SeedGroup, group_by_seed
from experiments.results import read_results
from experiments.tables import (
    COLUMNS,
    config_table,
    difference_cell,
    estimate_cell,
    format_step_time,
    hours_title,
    loss_cell,
    mean_cell,
    seeds_cell,
    status_cell,
    to_terminal,
    total_cell,
    why_cell,
)
from nanogpt.comparability import Comparability, agree_in_bits, compare_measurements, partition
from nanogpt.config import Against, CompareConfig, Metric
from nanogpt.console import print_text
from nanogpt.errors import BadInput, one_line
from nanogpt.formatting import escape_control_chars, format_count
from nanogpt.json_output import print_result
from nanogpt.output_paths import check_output_folder
from nanogpt.statistics import mean
from nanogpt.verdicts import describe_noise, describe_verdict

MAX_SIDES = 26  # sides, each a letter
PAGE_ONLY = ("best val", "FLOPs")  # columns that a terminal has no room for
MAX_CODE_LINES = 100  # of code in a terminal
SHOWN_METRICS: tuple[Metric, ...] = ("val_loss", "best_val_loss", "val_bpb")


def compare(config: CompareConfig) -> int:
    """Print the comparison, and write it to `out` if set. Return 0. Raises BadInput."""
    check_output_folder("out", config.out)
    found = find_runs(config)
    statuses, problems = read_statuses(found)
    results, unreadable = read_results(statuses, config.cost)
    groups = group_by_seed(results)
    if len(groups) < 2:
        what = "one setting" if groups else "no run that can be read"
        raise BadInput(
            f"targets: {what}; a comparison needs two runs that differ: {'; '.join(unreadable)}".rstrip(": ")
        )
    if len(groups) > MAX_SIDES:
        raise BadInput(f"targets: {len(groups)} settings; at most {MAX_SIDES} side by side; report ranks more")
    sides = [(chr(ord("A") + i), setting) for i, setting in enumerate(groups)]
    notes = [*problems, *unreadable, *(f"{one_line(r.path)}: {text}" for r in results for text in r.problems)]
    comparison = Comparison(sides, config.metric, config.tolerance, notes)
    page = [*(Note(text, warning=True) for text in notes), *page_blocks(comparison)]
    if config.out is not None:
        title = f"Comparison of {len(sides)} settings"
        files = Page(title, [*page, *figure_blocks(sides)]).write(Path(config.out), "compare")
        comparison = replace(comparison, files=files)

    def print_all(_: object) -> None:
        print_page(page)
        for path in comparison.files:
            print_text(one_line(path))

    print_result(config.format, comparison, print_all)
    return 0


def page_blocks(comparison: Comparison) -> Iterator[Block]:
    """Yield everything but the plots."""
    sides = comparison.sides
    yield Heading("What is compared")
    yield TableBlock(
        ("side", "runs", "status", "why"),
        [[Cell(name), Cell(name_runs(side)), status_cell(side), why_cell(side)] for name, side in sides],
    )
    unit = comparison.comparability.unit
    yield Heading("Numbers")
    yield from comparability_notes(comparison.comparability, sides)
    yield numbers_table(comparison)
    if words := verdict_note(comparison):
        yield Note(words)
    yield Heading("At equal cost")
    table = equal_cost_table(sides, "val_loss" if unit == "nats" else "val_bpb") if unit else None
    if table:
        yield table
        yield Note(
            f"{'Validation loss' if unit == 'nats' else 'Bits per byte'} where all sides have spent as much, in shares "
            "of what the cheapest spent; between evaluations it is interpolated."
        )
    elif unit is None:
        yield Note("Not compared: the sides were not measured on the same.")
    else:
        yield Note("No cost at which all sides have a validation loss is known.")
    if comparison.first_differences:
        yield Heading("First difference")
        yield from (Note(one_line(found.describe(), 1000)) for found in comparison.first_differences)
    yield Heading("Settings that differ")
    yield config_table([(name, side.first) for name, side in sides]) or Note("None.")
    yield Heading("Code")
    yield from code_blocks(sides)


def comparability_notes(comparability: Comparability, sides: Sequence[Side]) -> Iterator[Note]:
    """Yield which numbers can be compared, if not all can."""
    if comparability.unit == "bits_per_byte":
        yield Note(one_line(f"Compared in bits per byte, because {comparability.reason}.", 1000), warning=True)
    elif comparability.unit is None:
        measured = [(name, side.measurement) for name, side in sides if side.counted]
        labels = partition([measurement for _, measurement in measured], agree_in_bits)
        alike = [
            ", ".join(name for (name, _), label in zip(measured, labels, strict=True) if label == own)
            for own in dict.fromkeys(labels)
        ]
        why = f"Not comparable, because {comparability.reason}. Comparable with each other: {'; '.join(alike)}."
        yield Note(one_line(why, 1000), warning=True)
    if comparability.note:
        yield Note(one_line(comparability.note, 1000), warning=True)


def name_runs(side: SeedGroup) -> str:
    names = [one_line(result.path) for result in side.results]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def numbers_table(comparison: Comparison) -> TableBlock:
    """Return the results of each side and the difference from the first."""
    priced = any(has_prices(side.results) for _, side in comparison.sides)
    rows = [
        [
            Cell(name),
            seeds_cell(side),
            *(loss_cell(side, column) for column in SHOWN_METRICS),
            mean_cell((r.tokens for r in side.counted), format_count),
            mean_cell((flops(r) for r in side.counted), lambda value: f"{value:.3g}"),
            mean_cell((r.seconds for r in side.counted), format_step_time),
            total_cell(r.device_seconds for r in side.results if r.step),
            *([price_cell(side.results)] if priced else []),
            *([Cell(""), Cell("")] if i == 0 else difference_cells(gap)),
        ]
        for i, ((name, side), gap) in enumerate(zip(comparison.sides, comparison.verdicts.gaps, strict=True))
    ]
    hours, metric = hours_title([side for _, side in comparison.sides]), comparison.used_metric
    against = f"{COLUMNS[metric]} - A" if metric else "- A"
    names = [COLUMNS[column] for column in SHOWN_METRICS]
    costs = (hours, "cost") if priced else (hours,)
    return TableBlock(("side", "seeds", *names, "tokens", "FLOPs", "time", *costs, against, "verdict"), rows)


def difference_cells(gap: Gap | None) -> list[Cell]:
    """Return the difference from the first side with its 95 % interval, and the verdict."""
    if gap is None:
        return [Cell("-"), Cell("-")]
    if gap.verdict is None:
        text = f"{gap.mean:+.4f}"
        return [Cell(text if gap.final else f"({text})", gap.mean), Cell("-")]
    return [difference_cell(gap.verdict), Cell(describe_verdict(gap.verdict))]


def verdict_note(comparison: Comparison) -> str:
    """Return how the verdicts were found, and which sides have none."""
    sides = comparison.sides
    words: list[str] = []
    if any(gap and gap.verdict for gap in comparison.verdicts.gaps):
        words.append(describe_noise(comparison.verdicts.noise, comparison.verdicts.names))
    if diverged := [name for name, side in sides if side.diverged and side.finished]:
        words.append(f"No verdict on {', '.join(diverged)}: a seed diverged, and the mean is that of the others.")
    if unfinished := [name for name, side in sides if not side.finished]:
        words.append(f"Not finished: {', '.join(unfinished)}; in parentheses is their last evaluation.")
    return " ".join(words)


def equal_cost_table(sides: Sequence[Side], key: str = "val_loss") -> TableBlock | None:
    """Return validation loss or bits per byte of every side at equal tokens, FLOPs and time."""
    rows = [
        [Cell(found.cost), Cell(format_cost(found.cost, found.at), found.at), *map(estimate_cell, found.values)]
        for found in find_equal_costs(sides, key)
    ]
    return TableBlock(("cost", "at", *(name for name, _ in sides)), rows) if rows else None


def format_cost(x: Against, at: float) -> str:
    return format_step_time(at) if x == "time" else f"{at:.3g}" if x == "flops" else format_count(at)


def code_blocks(sides: Sequence[Side]) -> Iterator[Block]:
    """Yield the difference of every side's code from the first's."""
    (name, first), *others = sides
    for other, side in others:
        if first.first.starts and side.first.starts:
            yield from code_difference(name, first.first, other, side.first)
        else:
            yield Note(f"{name} and {other}: which code made them isn't recorded.")


def figure_blocks(sides: Sequence[Side]) -> Iterator[Block]:
    """Yield curves over tokens, FLOPs and time, in a unit in which all sides are comparable."""
    from experiments.plots.curves import Curve, loss_curves

    unit = compare_measurements([side.measurement for _, side in sides if side.counted]).unit
    if unit is None:
        return
    yield Heading("Loss curves")
    state = {name: "finished" if side.finished else next(iter(side.states)) for name, side in sides}
    curves = [
        Curve(f"{name}: {one_line(side.first.path.name, 60)}", side.counted, mean(losses), state[name])
        for name, side in sides
        if (losses := side.losses("val_loss" if unit == "nats" else "val_bpb"))
    ]
    for x in COSTS:
        if drawn := loss_curves(curves, x, f"compare-{x}", unit == "nats"):
            yield Figure(drawn)


def print_page(page: Sequence[Block]) -> None:
    """Print tables, notes and the first lines of code."""
    title, told = "", True
    for block in page:
        if isinstance(block, Heading):
            title, told = block.text, False
        elif isinstance(block, TableBlock):
            print_text(to_terminal(block, title, PAGE_ONLY))
            told = True
        elif isinstance(block, Note):
            print_text(
                ("" if told else f"{title}: ") + f"{'warning: ' if block.warning and not title else ''}{block.text}\n"
            )
            told = True
        elif isinstance(block, Code):
            lines = [*([f"{block.title}:"] if block.title else []), *block.text.splitlines()]
            more = (
                [f"… and {len(lines) - MAX_CODE_LINES} lines; out=FOLDER writes all"]
                if len(lines) > MAX_CODE_LINES
                else []
            )
            print_text("\n".join(map(escape_control_chars, [*lines[:MAX_CODE_LINES], *more])) + "\n")
