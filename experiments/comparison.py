"""A comparison of runs in numbers: each side, its difference from the first, and losses at equal cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from experiments.code_diff import changed_files, read_commit
from experiments.cost import study_cost
from experiments.first_difference import FirstDifference, find_first_difference
from experiments.ranking import SeedGroup
from experiments.results import RunResult
from experiments.tables import differing_contents, differing_values, first_reason
from nanogpt.comparability import IN_BITS, Comparability, compare_measurements
from nanogpt.config import Against, Metric
from nanogpt.statistics import LEVEL, Estimate, estimate_mean, mean, mean_or_none, sum_or_none
from nanogpt.verdicts import Noise, Verdict, judge_settings

SHARES = (0.25, 0.5, 0.75, 1.0)
COSTS: tuple[Against, ...] = ("tokens", "flops", "time")
UNITS: dict[Against, str] = {"tokens": "tokens", "flops": "flops", "time": "time_s", "steps": "steps"}
Side = tuple[str, SeedGroup]


@dataclass(frozen=True)
class Gap:
    """Difference of a side's mean from the first side's."""

    mean: float
    verdict: Verdict | None
    """None: one of the two isn't finished, or has a diverged seed."""
    final: bool
    """False: a side isn't finished, so the evaluations may be of different steps."""


@dataclass(frozen=True)
class SideVerdicts:
    """Difference of each side from the first, and what the verdicts on them are based on."""

    gaps: list[Gap | None]
    """None for the first side, for one without a result, and for all if they are not comparable."""
    names: list[str]
    """Sides whose losses were used for verdicts."""
    noise: Noise | None


def judge_sides(sides: Sequence[Side], metric: Metric | None, tolerance: float, level: float) -> SideVerdicts:
    """Return the differences in `metric`; None: the sides are not comparable."""
    losses = [side.losses_by_seed(metric) if metric else {} for _, side in sides]
    fair = [i for i, (_, side) in enumerate(sides) if losses[i] and side.finished and not side.diverged]
    judged = judge_settings([losses[i] for i in fair], 0, tolerance, level) if 0 in fair else None
    verdicts = dict(zip(fair, judged.verdicts, strict=True)) if judged else {}
    first, *others = [list(own.values()) for own in losses]
    gaps = [
        Gap(mean(own) - mean(first), verdicts.get(i), bool(sides[0][1].finished and sides[i][1].finished))
        if own and first
        else None
        for i, own in enumerate(others, 1)
    ]
    return SideVerdicts([None, *gaps], [sides[i][0] for i in fair], judged.noise if judged else None)


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
    tolerance: float = 0.0
    problems: Sequence[str] = ()
    level: float = LEVEL
    """Level of the intervals of differences."""
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

    @cached_property
    def verdicts(self) -> SideVerdicts:
        return judge_sides(self.sides, self.used_metric, self.tolerance, self.level)

    @cached_property
    def first_differences(self) -> list[FirstDifference]:
        """Differences of the sides from the first side, where they have a seed in common."""
        (first, base), *others = self.sides
        found = [find_first_difference((first, name), (base, side)) for name, side in others]
        return [difference for difference in found if difference]

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
            "sides": [
                side_fields(name, side, gap) for (name, side), gap in zip(self.sides, self.verdicts.gaps, strict=True)
            ],
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
            "first_differences": self.first_differences,
            "problems": self.problems,
            "files": self.files,
        }


def side_fields(name: str, side: SeedGroup, gap: Gap | None) -> dict[str, Any]:
    """Return what `format=json` shows of a side. Costs are means over its seeds, `device_s` is their sum."""
    start = side.first.starts[-1] if side.first.starts else {}
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
        "device_s": sum_or_none(r.device_seconds for r in side.results if r.step),
        "cost": study_cost(side.results),
        "difference": gap
        and {
            "mean": gap.mean,
            "half_width": gap.verdict and gap.verdict.half,
            "verdict": gap.verdict and gap.verdict.kind,
            "seeds_needed": gap.verdict and gap.verdict.seeds,
            "final": gap.final,
        },
        "code_sha256": start.get("code"),
        "commit": read_commit(start) or None,
        "changed_files": changed_files(start),
    }


def estimate_fields(found: Estimate | None) -> dict[str, Any] | None:
    return found and {"mean": found.mean, "half_width": found.half, "seeds": found.n}
