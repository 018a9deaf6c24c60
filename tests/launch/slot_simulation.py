"""An event simulator of searches on K slots: a virtual clock, random run times and random learning curves.

The model of a study, in units of the median duration of a whole run:

- Point i has the loss `f + a (t^-b - 1)` after a fraction t of its steps: f is normal with standard deviation 1 over
  the points, and a is normal too, so curves cross. `crossing` is the standard deviation of a; a point's loss at t=1/9
  then has a rank correlation of 0.78 with its loss at the end, and at t=1/3 of 0.95 (27 points).
- A whole run of a point takes exp(normal(0, 0.5)): models differ in size. Each part of it between two rungs takes
  exp(normal(0, 0.2)) times as long as its share: machines differ.
"""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from launch.promotion import Rules, Standings, is_over, next_start


@dataclass
class SimulatedStudy:
    """Losses and durations of all points at all rungs."""

    points: int
    rungs: int
    eta: int
    rng: random.Random
    crossing: float = 0.35
    losses: list[list[float]] = field(default_factory=list[list[float]])
    """By point and rung."""
    times: list[list[float]] = field(default_factory=list[list[float]])
    """Duration of the part that ends at a rung, by point and rung."""

    def __post_init__(self) -> None:
        shares = [self.eta ** (rung + 1.0 - self.rungs) for rung in range(self.rungs)]
        for _ in range(self.points):
            end, slowness, whole = (
                self.rng.gauss(0, 1),
                self.rng.gauss(0, self.crossing),
                math.exp(self.rng.gauss(0, 0.5)),
            )
            self.losses.append([end + slowness * (share**-0.5 - 1) for share in shares])
            parts = [share - before for share, before in zip(shares, [0.0, *shares], strict=False)]
            self.times.append([whole * part * math.exp(self.rng.gauss(0, 0.2)) for part in parts])

    @property
    def best(self) -> int:
        """Point with the lowest loss if all are trained to the end."""
        return min(range(self.points), key=lambda point: self.losses[point][-1])


@dataclass
class Outcome:
    """Winner of a search, its duration, and how much of its slots' time was used."""

    winner: int
    duration: float
    used: float
    """Share of the slots' time in which a run was training."""
    work: float
    """Time of all runs."""


def search_asynchronously(study: SimulatedStudy, slots: int, rules: Rules) -> Outcome:
    """Simulate a search by `launch.promotion`: each slot that becomes free asks for its next run."""
    now = Standings([{} for _ in range(study.rungs)])
    running: list[tuple[float, int, int, float]] = []
    clock = busy = 0.0
    while not is_over(now, rules):
        while len(running) < slots and (start := next_start(now, rules)):
            point, rung = start
            now.reached[point] = rung
            heapq.heappush(running, (clock + study.times[point][rung], point, rung, clock))
        clock, point, rung, began = heapq.heappop(running)
        busy += clock - began
        now.results[rung][point] = study.losses[point][rung]
    busy += sum(clock - began for *_, began in running)  # stopped now
    return Outcome(now.rank(study.rungs - 1)[0], clock, busy / (slots * clock), busy)


def halve_synchronously(study: SimulatedStudy, slots: int, rules: Rules) -> Outcome:
    """Simulate synchronous halving: a rung begins when the one before has ended."""
    left, clock, busy = list(range(study.points)), 0.0, 0.0
    for rung in range(study.rungs):
        free = [clock] * slots
        for point in left:
            heapq.heappush(free, heapq.heappop(free) + study.times[point][rung])
            busy += study.times[point][rung]
        clock = max(free)
        left.sort(key=lambda point: study.losses[point][rung])
        left = left[: rules.count_kept(len(left))] if rung < study.rungs - 1 else left
    return Outcome(left[0], clock, busy / (slots * clock), busy)


Search = Callable[[SimulatedStudy, int, Rules], Outcome]
