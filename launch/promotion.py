"""Choice of the run that an asynchronous search trains next: a function of the results so far, without any files.

Asynchronous successive halving (ASHA; Li et al. 2018, algorithm 2) or median stopping. A point is its number, in the
order in which points are first trained.
"""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rules:
    """Size of a search, and how many points continue from a rung."""

    points: int
    """Number of points, those that are not chosen yet included."""
    rungs: int
    eta: int = 3
    """Ratio of the lengths of two rungs; without `median`, the best 1/eta continue."""
    median: bool = False
    backfill: bool = True
    new_first: bool = False
    """Start all points before any continues: what continues is then decided with more results."""
    seeds: int = 1
    """Runs of each point that is trained to the end, which differ in their seed. Those after the first are stages of
    their own, numbered after the rungs.
    """

    @property
    def stages(self) -> int:
        """Number of rungs and further seeds."""
        return self.rungs + self.seeds - 1

    def share(self, rung: int) -> float:
        """Return the fraction of a run's steps to which a rung trains; a further seed is trained to the end."""
        return self.eta ** min(0.0, rung + 1.0 - self.rungs)

    def count_kept(self, results: int, all_known: bool = True) -> int:
        """Return how many of the results at a rung are good enough to continue."""
        if self.median:
            return (results + 1) // 2
        return math.ceil(results / self.eta) if all_known else results // self.eta


@dataclass
class Standings:
    """Results of the points at the rungs, and the last rung to which each was started."""

    results: list[dict[int, float]]
    """For each rung, and further seed, the metric of the points; infinite if one failed."""
    reached: dict[int, int] = field(default_factory=dict[int, int])
    """Last rung, or further seed, to which each point was started."""

    def rank(self, rung: int) -> list[int]:
        """Return the points that did not fail at a rung, best first."""
        results = self.results[rung]
        return sorted((point for point in results if results[point] < math.inf), key=lambda p: (results[p], p))


def next_start(now: Standings, rules: Rules) -> tuple[int, int] | None:
    """Return (point, rung) to train in a free slot, or None if there is nothing to train.

    In this order: a paused run that is good enough to continue, the furthest first; a new point (before that with
    `new_first`); with `backfill`, until the search is over, further seeds of what was trained to the end, then the best
    paused run of the lowest rung.
    """
    new = next((point for point in range(rules.points) if point not in now.reached), None)
    if new is not None and rules.new_first:
        return new, 0
    paused = [[point for point in now.rank(rung) if now.reached[point] == rung] for rung in range(rules.stages - 1)]
    promoted = find_promoted(now, rules)
    for rung in reversed(range(rules.stages - 1)):
        if (best := next((point for point in paused[rung] if point in promoted[rung + 1]), None)) is not None:
            return best, rung + 1
    if new is not None:
        return new, 0
    if rules.backfill and not is_over(now, rules):
        order = [*range(rules.rungs - 1, rules.stages - 1), *range(rules.rungs - 1)]
        return next(((paused[rung][0], rung + 1) for rung in order if paused[rung]), None)
    return None


def find_promoted(now: Standings, rules: Rules) -> list[set[int]]:
    """Return for each rung the points that are good enough to be trained to it, by the results so far."""
    needed = find_needed(now, rules)
    promoted = [set(range(rules.points))]
    for rung in range(rules.stages - 1):
        ranked = now.rank(rung) if rung < rules.rungs - 1 else []  # further seeds are for those that are needed
        best = set(ranked[: rules.count_kept(len(now.results[rung]), all_known=False)])
        promoted.append(best | (needed[rung + 1] if rung + 1 < len(needed) else set()))
    return promoted


def find_needed(now: Standings, rules: Rules) -> list[set[int]]:
    """Return for each rung the points without which the search isn't over; a rung that is still open ends the list.

    These are as many as in synchronous halving, but the best of all that reached the rung below; all of the last rung
    need further seeds.
    """
    needed = [set(range(rules.points))]
    for rung in range(rules.stages - 1):
        if not needed[rung] <= now.results[rung].keys():
            break
        ranked = now.rank(rung)
        if rung < rules.rungs - 1:
            needed.append(set(ranked[: rules.count_kept(len(needed[rung]))]))
        else:
            needed.append(needed[rung] & set(ranked))
    return needed


def is_over(now: Standings, rules: Rules) -> bool:
    """Return whether every point that is needed at the last rung has its result, with all its seeds."""
    needed = find_needed(now, rules)
    return len(needed) == rules.stages and needed[-1] <= now.results[-1].keys()
