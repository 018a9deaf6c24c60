"""A comparison of runs in numbers: each side, its difference from the first, and losses at equal cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from experiments.code_diff import changed_files, read_commit
from experiments.ranking import SeedGroup
from experiments.results import RunResult
from experiments.statistics import Estimate, estimate_mean, mean, welch_test
from experiments.tables import differing_contents, differing_values, first_reason
from nanogpt.comparability import IN_BITS, Comparability, compare_measurements
from nanogpt.config import Against, Metric

SHARES = (0.25, 0.5, 0.75, 1.0)
COSTS: tuple[Against, ...] = ("tokens", "flops", "time")
UNITS: dict[Against, str] = {"tokens": "tokens", "flops": "flops", "time": "time_s", "steps": "steps"}
Side = tuple[str, SeedGroup]


@dataclass(frozen=True)
class Gap:
    """Difference of a side's mean from the first side's."""

    mean: float
    half: float | None
    """Half the width of its 95 % interval; None: a side has a single seed."""
    p: float | None
    """By Welch's test."""
    final: bool
    """False: a side isn't finished, so the evaluations may be of different steps."""


def find_gap(side: SeedGroup, first: SeedGroup, metric: Metric | None) -> Gap | None:
    """Return the difference in a metric; None without a metric in which both have results."""
    losses, others = (side.losses(metric), first.losses(metric)) if metric else ([], [])
    if not losses or not others:
        return None
    final = bool(side.finished and first.finished)
    found = welch_test(losses, others) if final else None
    gap = mean(losses) - mean(others)
    return Gap(gap, None, None, final) if found is None else Gap(found.mean, found.half, found.p, final)


@dataclass(frozen=True)
class EqualCost:
    """Losses of all sides where each has spent as much."""

    cost: Against
    at: float
    values: list[Estimate | None]


def find_equal_costs(sides: Sequence[Side], key: str) -> list[EqualCost]:
    """Return validation loss or bits per byte of every side at equal tokens, FLOPs and time."""
    found: list[EqualCost] = []
    for x in COSTS:
        curves = [[line for r in side.counted if (line := cost_curve(r, x, key))] for _, side in sides]
        if not all(curves):
            continue
        most = min(max(xs) for xs, _ in chain.from_iterable(curves))
        found += [EqualCost(x, share * most, [loss_at(own, share * most) for own in curves]) for share in SHARES]
    return found


def cost_curve(result: RunResult, x: Against, key: str) -> tuple[list[float], list[float]] | None:
    """Return costs and values of the evaluations; None if the cost is unknown or doesn't grow."""
    rows = [row for row in result.evals if key in row]
    places = result.x_values(rows, x)
    if not places or max(places) <= 0:
        return None
    return places, [row[key] for row in rows]


def loss_at(curves: Sequence[tuple[list[float], list[float]]], at: float) -> Estimate | None:
    """Return the mean over seeds, each interpolated between its evaluations."""
    return estimate_mean([float(np.interp(at, xs, losses)) for xs, losses in curves])


def flops(result: RunResult) -> float | None:
    return None if result.flops_per_token is None else result.tokens * result.flops_per_token


@dataclass(frozen=True)
class Comparison:
    """All sides and what they are compared in."""

    sides: Sequence[Side]
    metric: Metric
    """As asked for. Bits per byte replace nats where only those are comparable."""
    problems: Sequence[str] = ()
    files: Sequence[Path] = ()
    """Files that were written."""

    @property
    def comparability(self) -> Comparability:
        return compare_measurements([side.measurement for _, side in self.sides if side.counted])

    @property
    def used_metric(self) -> Metric | None:
        """The metric of the differences; None: not comparable."""
        unit = self.comparability.unit
        return IN_BITS[self.metric] if unit == "bits_per_byte" else self.metric if unit else None

    @property
    def equal_costs(self) -> list[EqualCost]:
        unit = self.comparability.unit
        return find_equal_costs(self.sides, "val_loss" if unit == "nats" else "val_bpb") if unit else []

    def json_fields(self) -> dict[str, Any]:
        """Return what `format=json` shows."""
        names = [name for name, _ in self.sides]
        first = [side.first for _, side in self.sides]
        rows = [(key, values, effect == "yes") for key, values, effect in differing_values(first)]
        rows += [(key, values, True) for key, values in differing_contents([r.measurement for r in first]).items()]
        return {
            "metric": self.used_metric,
            "comparable": self.comparability,
            "sides": [side_fields(name, side, self.sides[0][1], self.used_metric) for name, side in self.sides],
            "equal_cost": [
                {
                    "cost": UNITS[found.cost],
                    "at": found.at,
                    "values": dict(zip(names, map(estimate_fields, found.values), strict=True)),
                }
                for found in self.equal_costs
            ],
            "settings": [
                {"key": key, "values": dict(zip(names, values, strict=True)), "changes_result": changes}
                for key, values, changes in rows
            ],
            "problems": self.problems,
            "files": self.files,
        }


def side_fields(name: str, side: SeedGroup, first: SeedGroup, metric: Metric | None) -> dict[str, Any]:
    """Return what `format=json` shows of a side. Costs are means over its seeds, `device_s` is their sum."""
    gap = None if side is first else find_gap(side, first, metric)
    start = side.first.starts[-1] if side.first.starts else {}
    costs = [r.device_seconds for r in side.results if r.step]
    return {
        "side": name,
        "runs": [result.path for result in side.results],
        "seeds": side.seeds,
        "states": side.states,
        "why": first_reason(side) or None,
        "diverged": side.diverged,
        "finished": bool(side.finished),
        **{key: estimate_fields(side.loss(key)) for key in ("val_loss", "best_val_loss", "val_bpb", "best_val_bpb")},
        "tokens": mean_or_none([r.tokens for r in side.counted]),
        "flops": mean_or_none([flops(r) for r in side.counted]),
        "time_s": mean_or_none([r.seconds for r in side.counted]),
        "device_s": sum(known) if costs and len(known := [c for c in costs if c is not None]) == len(costs) else None,
        "difference": gap and {"mean": gap.mean, "half_width": gap.half, "p": gap.p, "final": gap.final},
        "code_sha256": start.get("code"),
        "commit": read_commit(start) or None,
        "changed_files": changed_files(start),
    }


def estimate_fields(found: Estimate | None) -> dict[str, Any] | None:
    return found and {"mean": found.mean, "half_width": found.half, "seeds": found.n}


def mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
