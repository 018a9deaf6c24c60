"""`nanogpt compare`: runs, or settings of several seeds, side by side, at equal cost too."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from experiments.code_diff import code_difference
from experiments.document import Block, Cell, Code, Document, Figure, Heading, Note, Table
from experiments.find import find
from experiments.progress import look
from experiments.ranking import Setting, settings
from experiments.results import Result, read_all
from experiments.statistics import Estimate, difference, estimate, mean
from experiments.tables import (
    COLUMNS,
    as_text,
    config_table,
    duration,
    estimate_cell,
    hours_title,
    loss_cell,
    mean_cell,
    seeds_cell,
    status_cell,
    total_cell,
    why_cell,
)
from nanogpt.comparability import IN_BITS, Comparability, agree_in_bits, compare_measurements, partition
from nanogpt.config import Against, CompareConfig, Metric
from nanogpt.console import escape_control_chars, format_count, say
from nanogpt.errors import BadInput, one_line
from nanogpt.output_paths import check_output_folder

MOST = 26  # sides, each a letter
PAGE_ONLY = ("best val", "FLOPs")  # columns that a terminal has no room for
LINES = 100  # of code in a terminal
SHARES = (0.25, 0.5, 0.75, 1.0)
COSTS: tuple[Against, ...] = ("tokens", "flops", "time")
SHOWN_METRICS: tuple[Metric, ...] = ("val_loss", "best_val_loss", "val_bpb")
Side = tuple[str, Setting]


def compare(config: CompareConfig) -> int:
    """Tell, and write where that is asked for. Raises BadInput."""
    check_output_folder("out", config.out)
    found = find(config)
    progress, problems = look(found)
    results, unreadable = read_all(progress)
    groups = settings(results)
    if len(groups) < 2:
        what = "one setting" if groups else "no run that can be read"
        raise BadInput(
            f"targets: {what}; a comparison needs two runs that differ: {'; '.join(unreadable)}".rstrip(": ")
        )
    if len(groups) > MOST:
        raise BadInput(f"targets: {len(groups)} settings; at most {MOST} side by side; report ranks more")
    sides = [(chr(ord("A") + i), setting) for i, setting in enumerate(groups)]
    notes = [*problems, *unreadable, *(f"{one_line(r.path)}: {text}" for r in results for text in r.problems)]
    page = [*(Note(text, warning=True) for text in notes), *blocks(sides, config.metric)]
    tell(page)
    if config.out is not None:
        title = f"Comparison of {len(sides)} settings"
        for path in Document(title, [*page, *pictures(sides)]).write(Path(config.out), "compare"):
            say(one_line(path))
    return 0


def blocks(sides: Sequence[Side], metric: Metric) -> Iterator[Block]:
    """All but the pictures."""
    yield Heading("What is compared")
    yield Table(
        ("side", "runs", "status", "why"),
        [[Cell(name), Cell(paths(side)), status_cell(side), why_cell(side)] for name, side in sides],
    )
    comparability = compare_measurements([side.measurement for _, side in sides if side.counted])
    unit = comparability.unit
    if unit == "bits_per_byte":
        metric = IN_BITS[metric]
    yield Heading("Numbers")
    yield from comparability_notes(comparability, sides)
    yield numbers(sides, metric if unit else None)
    yield Note(verdict_note(sides))
    yield Heading("At equal cost")
    table = equal_cost(sides, "val_loss" if unit == "nats" else "val_bpb") if unit else None
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
    yield Heading("Settings that differ")
    yield config_table([(name, side.first) for name, side in sides]) or Note("None.")
    yield Heading("Code")
    yield from code(sides)


def comparability_notes(comparability: Comparability, sides: Sequence[Side]) -> Iterator[Note]:
    """Which numbers can be compared, where not all can."""
    if comparability.unit == "bits_per_byte":
        yield Note(one_line(f"Compared in bits per byte, because {comparability.reason}.", 1000), warning=True)
    elif comparability.unit is None:
        measured = [(name, side.measurement) for name, side in sides if side.counted]
        labels = partition([one for _, one in measured], agree_in_bits)
        alike = [
            ", ".join(name for (name, _), label in zip(measured, labels, strict=True) if label == own)
            for own in dict.fromkeys(labels)
        ]
        why = f"Not comparable, because {comparability.reason}. Comparable with each other: {'; '.join(alike)}."
        yield Note(one_line(why, 1000), warning=True)
    if comparability.note:
        yield Note(one_line(comparability.note, 1000), warning=True)


def paths(side: Setting) -> str:
    """The runs of a side, the first few by name."""
    names = [one_line(result.path) for result in side.results]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def numbers(sides: Sequence[Side], metric: Metric | None) -> Table:
    """What each came to, and how far it is from the first in `metric`; None: not comparable."""
    first = sides[0][1]
    rows = [
        [
            Cell(name),
            seeds_cell(side),
            *(loss_cell(side, column) for column in SHOWN_METRICS),
            mean_cell((r.tokens for r in side.counted), format_count),
            mean_cell((flops(r) for r in side.counted), lambda value: f"{value:.3g}"),
            mean_cell((r.seconds for r in side.counted), duration),
            total_cell(r.device_seconds for r in side.results if r.step),
            *([Cell(""), Cell("")] if side is first else apart(side, first, metric)),
        ]
        for name, side in sides
    ]
    hours = hours_title([side for _, side in sides])
    gap = f"{COLUMNS[metric]} - A" if metric else "- A"
    names = [COLUMNS[column] for column in SHOWN_METRICS]
    return Table(("side", "seeds", *names, "tokens", "FLOPs", "time", hours, gap, "p"), rows)


def flops(result: Result) -> float | None:
    return None if result.flops_per_token is None else result.tokens * result.flops_per_token


def apart(side: Setting, first: Setting, metric: Metric | None) -> list[Cell]:
    """The difference to the first side, with its 95 % interval and p where both have seeds."""
    losses, others = (side.losses(metric), first.losses(metric)) if metric else ([], [])
    if not losses or not others:
        return [Cell("-"), Cell("-")]
    gap = mean(losses) - mean(others)
    if not (side.finished and first.finished):  # their last evaluations may be of different steps
        return [Cell(f"({gap:+.4f})", gap), Cell("-")]
    found = difference(losses, others)
    if found is None:
        return [Cell(f"{gap:+.4f}", gap), Cell("-")]
    p = "<1e-4" if found.p < 1e-4 else f"{found.p:.2g}"
    return [Cell(f"{found.mean:+.4f} ± {found.half:.4f}", found.mean), Cell(p, found.p)]


def verdict_note(sides: Sequence[Side]) -> str:
    """What the numbers can say."""
    unfinished = [name for name, side in sides if not side.finished]
    seeded = all(len(side.counted) > 1 for _, side in sides)
    words = ["± is half of a 95 % interval; p is Welch's: how probable so large a difference is where there is none."]
    if not seeded:
        words.append("Of one seed neither is known: train more, e.g. training.seed=1,2,3 in a sweep.")
    if len(sides) > 2 and seeded:
        words.append(
            f"With {len(sides) - 1} comparisons expect p below 0.05 by chance {len(sides) - 1} times as often."
        )
    if diverged := [name for name, side in sides if side.diverged and side.finished]:
        words.append(f"Of {', '.join(diverged)} a seed diverged and isn't counted, which flatters its mean.")
    if unfinished:
        words.append(f"Not finished: {', '.join(unfinished)}; in parentheses is their last evaluation.")
    return " ".join(words)


def equal_cost(sides: Sequence[Side], key: str = "val_loss") -> Table | None:
    """The validation loss, or bits per byte, of every side at the same tokens, FLOPs and time."""
    rows: list[list[Cell]] = []
    for x in COSTS:
        curves = [[line for r in side.counted if (line := curve(r, x, key))] for _, side in sides]
        if not all(curves):
            continue
        most = min(max(xs) for xs, _ in chain.from_iterable(curves))
        for share in SHARES:
            at = share * most
            cells = [estimate_cell(loss_at(own, at)) for own in curves]
            rows.append([Cell(x), Cell(written(x, at), at), *cells])
    return Table(("cost", "at", *(name for name, _ in sides)), rows) if rows else None


def curve(result: Result, x: Against, key: str) -> tuple[list[float], list[float]] | None:
    """Where it was evaluated, and the values; None without a cost that is known and grows."""
    rows = [row for row in result.evals if key in row]
    places = result.along(rows, x)
    if not places or max(places) <= 0:
        return None
    return places, [row[key] for row in rows]


def loss_at(curves: Sequence[tuple[list[float], list[float]]], at: float) -> Estimate | None:
    """Over the seeds, each interpolated between its evaluations."""
    return estimate([float(np.interp(at, xs, losses)) for xs, losses in curves])


def written(x: Against, at: float) -> str:
    return duration(at) if x == "time" else f"{at:.3g}" if x == "flops" else format_count(at)


def code(sides: Sequence[Side]) -> Iterator[Block]:
    """Of every side against the first."""
    (name, first), *others = sides
    for other, side in others:
        if first.first.starts and side.first.starts:
            yield from code_difference(name, first.first, other, side.first)
        else:
            yield Note(f"{name} and {other}: which code made them isn't recorded.")


def pictures(sides: Sequence[Side]) -> Iterator[Block]:
    """Curves over tokens, FLOPs and time, in a unit in which all sides are comparable."""
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


def tell(page: Sequence[Block]) -> None:
    """The page for a terminal: tables and notes; of what a page folds the beginning."""
    title, told = "", True
    for block in page:
        if isinstance(block, Heading):
            title, told = block.text, False
        elif isinstance(block, Table):
            say(as_text(block, title, PAGE_ONLY))
            told = True
        elif isinstance(block, Note):
            say(("" if told else f"{title}: ") + f"{'warning: ' if block.warning and not title else ''}{block.text}\n")
            told = True
        elif isinstance(block, Code):
            lines = [*([f"{block.title}:"] if block.title else []), *block.text.splitlines()]
            more = [f"… and {len(lines) - LINES} lines; out=FOLDER writes all"] if len(lines) > LINES else []
            say("\n".join(map(escape_control_chars, [*lines[:LINES], *more])) + "\n")
