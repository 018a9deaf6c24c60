"""Causes in a ranking: effects of the varied keys, interactions, and the loss over the logarithm of rates."""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from experiments.document import Block, Cell, Heading, Note, TableBlock
from experiments.effects import Array, Effect, Effects, Term, fit_effects, fit_response, is_log_spaced
from experiments.ranking import Ranking, SeedGroup, VariedKey
from experiments.sweep_lines import order_values, split_into_lines
from nanogpt.formatting import format_brief, shorten
from nanogpt.metrics_file import as_number
from nanogpt.statistics import mean

MAX_LEVELS, MAX_KEYS = 12, 8  # values of a key, and keys, of a grid; a search has more
EXPLAIN_RESPONSES = (
    "The optimum is that of a parabola over the logarithm, with its 95 % interval (Fieller); - is a parabola without a "
    "minimum among the tried values. A value twice or half the optimum costs as much as the column after it says. The "
    "intervals know the noise of seeds, not that the curve may be no parabola."
)
HALF_WIDTHS = {
    "effect": "effect_ci95",
    "factor_2_off": "factor_2_off_ci95",
    "per_doubling": "per_doubling_ci95",
}
Record = dict[str, Any]


def find_causes(ranking: Ranking, varied: Sequence[VariedKey]) -> Record | None:
    """Return the effects as report.json shows them; None if too little was varied, or as much as in a search."""
    found = ranking.fair
    axes = [axis for axis in varied if len({axis.text(setting) for setting in found}) > 1]
    values = [order_values(found, axis) for axis in axes]
    if ranking.verdicts is None or not 1 <= len(axes) <= MAX_KEYS or max(map(len, values)) > MAX_LEVELS:
        return None
    texts = [[axis.text(setting) for setting in settings] for axis, settings in zip(axes, values, strict=True)]
    levels = [[own.index(axis.text(s)) for axis, own in zip(axes, texts, strict=True)] for s in found]
    losses = [setting.losses(ranking.metric) for setting in found]
    effects = fit_effects(levels, [mean(own) for own in losses], ranking.verdicts.noise, list(map(len, losses)))
    responses = list(find_responses(ranking, axes, values, effects))
    if len(axes) == 1 and not responses:
        return None
    keys = [axis.key for axis in axes]

    def describe_term(term: Term) -> Iterator[Record]:
        for level, effect in zip(term.levels, term.effects, strict=True):
            at = {keys[key]: axes[key].value(values[key][i]) for key, i in zip(term.keys, level, strict=True)}
            yield {"at": at, **describe_effect("effect", effect), "p_of_key": term.pvalue}

    return {
        "noise": None if not effects.means.known else "residuals" if effects.means.from_residuals else "seeds",
        "left_out": len(ranking.groups) - len(found),
        "effects": [row for term in effects.mains for row in describe_term(term)],
        "interactions": [row for term in effects.interactions for row in describe_term(term)],
        "responses": responses,
        "confounded": [
            *([axis.key, *axis.others] for axis in axes if axis.others),
            *([keys[key] for key in group] for group in effects.confounded),
        ],
        "not_crossed": [[keys[a], keys[b]] for a, b in effects.uncrossed],
    }


def describe_effect(name: str, effect: Effect) -> Record:
    return {name: effect.value, HALF_WIDTHS[name]: effect.half}


def find_responses(
    ranking: Ranking, axes: Sequence[VariedKey], values: Sequence[Sequence[SeedGroup]], effects: Effects
) -> Iterator[Record]:
    """Yield the response to each log-spaced key, and to that of the plotted lines at the values of the others."""
    found = ranking.fair
    for term in effects.mains if effects.means.known else ():
        axis, settings = axes[term.keys[0]], values[term.keys[0]]
        diverged = [as_number(axis.value(setting)) or 0.0 for setting in ranking.groups if setting.diverged]
        stable = [s for s in settings if (as_number(axis.value(s)) or 0.0) < min(diverged, default=inf)]
        yield from describe_response(axis, settings, term.weights, effects, {}, stable[-1] if stable else None)
    sweep = split_into_lines(ranking.groups, axes) if len(axes) > 1 and effects.means.known else None
    for line in sweep.lines if sweep else ():
        settings = [setting for setting in line.settings if setting in found]
        if sweep and settings:
            at = {axis.key: axis.value(settings[0]) for axis in axes if axis is not sweep.x}
            weights = np.eye(len(found))[[found.index(setting) for setting in settings]]
            yield from describe_response(sweep.x, settings, weights, effects, at, line.highest_stable)


def describe_response(
    axis: VariedKey,
    settings: Sequence[SeedGroup],
    weights: Array,
    effects: Effects,
    at: Record,
    stable: SeedGroup | None,
) -> Iterator[Record]:
    """Yield the response to a key at the values `at` of the others ({}: averaged); nothing if it is not log-spaced."""
    numbers = [number for setting in settings if (number := as_number(axis.value(setting))) is not None]
    if len(numbers) == len(settings) and is_log_spaced(numbers):
        found = fit_response(numbers, weights, effects.means)
        yield {
            "key": axis.key,
            "at": at,
            "used": list(found.used),
            "optimum": found.optimum,
            "optimum_low": found.low,
            "optimum_high": found.high,
            **describe_effect("factor_2_off", found.doubled),
            **describe_effect("per_doubling", found.slope),
            "highest_stable": stable and axis.value(stable),
        }


def cause_blocks(causes: Record | None, names: Mapping[str, str], where: str) -> Iterator[Block]:
    """Yield effects, interactions and responses. `names` has the short names of keys."""
    if causes is None:
        return

    def assign(at: Record) -> str:
        return " ".join(f"{names.get(key, key)}={shorten(format_brief(value), 40)}" for key, value in at.items())

    yield Heading(f"Causes{where}")
    for keys in causes["confounded"]:
        more = f" and {len(keys) - MAX_KEYS} more" if len(keys) > MAX_KEYS else ""
        yield Note(f"Confounded: {', '.join(keys[:MAX_KEYS])}{more}. Their effects can't be told apart.", warning=True)
    effects = causes["effects"]
    several = len({key for row in effects for key in row["at"]}) > 1
    if several:
        rows = [[Cell(assign(row["at"])), effect_cell(row, "effect"), pvalue_cell(row["p_of_key"])] for row in effects]
        yield TableBlock(("value", "effect on the loss", "p of no effect of the key"), rows)
        yield Note(explain_effects(causes))
    largest: dict[tuple[str, ...], Record] = {}
    for row in sorted(causes["interactions"], key=lambda row: -abs(row["effect"])):
        largest.setdefault(tuple(row["at"]), row)
    if largest:
        rows = [
            [Cell(assign(row["at"])), effect_cell(row, "effect"), pvalue_cell(row["p_of_key"])]
            for row in largest.values()
        ]
        yield TableBlock(("interaction, where it is largest", "beyond both effects", "p of no interaction"), rows)
    if causes["responses"]:
        average = "average" if several else ""
        rows = [response_cells(row, names, assign(row["at"]) or average) for row in causes["responses"]]
        titles = ("optimum", "95 % interval", "a factor of 2 off", "per doubling", "highest stable")
        yield TableBlock(("key", "at", *titles), rows)
        yield Note(EXPLAIN_RESPONSES)


def explain_effects(causes: Record) -> str:
    """Return how to read the effects and interactions."""
    noise = {
        "seeds": "The 95 % intervals of one key hold together.",
        "residuals": "No setting has two seeds: noise is what the effects leave, interactions included.",
        None: "Nothing is known about noise.",
    }
    words = ["Effects are differences from the average over a key's values, all else equal.", noise[causes["noise"]]]
    if causes["left_out"]:
        words.append(f"Settings left out, unfinished or with a diverged seed: {causes['left_out']}.")
    if pairs := [" and ".join(pair) for pair in causes["not_crossed"]]:
        more = f" and {len(pairs) - 3} more pairs" if len(pairs) > 3 else ""
        words.append(f"Not crossed, so without an interaction: {', '.join(pairs[:3])}{more}.")
    return " ".join(words)


def response_cells(row: Record, names: Mapping[str, str], at: str) -> list[Cell]:
    """Return the row of a response."""
    optimum, low, high, used = (row[key] for key in ("optimum", "optimum_low", "optimum_high", "used"))
    ends = [f"{low:.3g}" if low else f"< {used[0]:.3g}", f"{high:.3g}" if high else f"> {used[-1]:.3g}"]
    return [
        Cell(names.get(row["key"], row["key"])),
        Cell(at),
        Cell("-") if optimum is None else Cell(f"{optimum:.3g}", optimum),
        Cell("-" if optimum is None else f"{ends[0]} to {ends[1]}", low),
        Cell("-") if optimum is None else effect_cell(row, "factor_2_off"),
        effect_cell(row, "per_doubling"),
        Cell(format_brief(row["highest_stable"]), as_number(row["highest_stable"])),
    ]


def effect_cell(row: Record, name: str) -> Cell:
    value, half = row[name], row[HALF_WIDTHS[name]]
    return Cell(f"{value:+.4f}" + ("" if half is None else f" ± {half:.4f}"), value)


def pvalue_cell(pvalue: float | None) -> Cell:
    return Cell("-") if pvalue is None else Cell("< 0.001" if pvalue < 0.001 else f"{pvalue:.3f}", pvalue)
