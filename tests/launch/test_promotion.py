"""Which run an asynchronous search trains next, in small cases by hand and in simulated studies."""

import random
from statistics import mean

import pytest

from launch.promotion import Rules, Standings, is_over, next_start
from tests.launch.slot_simulation import Outcome, Search, SimulatedStudy, halve_synchronously, search_asynchronously

SEED = 20260101


def standings(*results: dict[int, float], reached: dict[int, int] | None = None) -> Standings:
    """Return standings in which every point was started as far as it has results, or as `reached` says."""
    known = {point: rung for rung, values in enumerate(results) for point in values}
    return Standings(list(results), known | (reached or {}))


def test_a_third_of_the_results_at_a_rung_continue() -> None:
    """Of two results none; of three the best; then a new point before the second best."""
    rules = Rules(points=9, rungs=3)
    assert next_start(standings({}, {}, {}), rules) == (0, 0)
    assert next_start(standings({0: 2.0, 1: 1.0}, {}, {}), rules) == (2, 0)
    three = {0: 2.0, 1: 1.0, 2: 3.0}
    assert next_start(standings(three, {}, {}), rules) == (1, 1)
    assert next_start(standings(three, {}, {}, reached={1: 1}), rules) == (3, 0)
    assert next_start(standings({**three, 3: 0.5, 4: 4.0, 5: 5.0}, {}, {}, reached={1: 1}), rules) == (3, 1)
    assert next_start(standings(three, {}, {}), Rules(points=9, rungs=3, new_first=True)) == (3, 0)


def test_the_furthest_run_continues_first() -> None:
    rules = Rules(points=20, rungs=3)
    lower = {point: float(point) for point in range(12)}
    assert next_start(standings(lower, {0: 2.0, 1: 1.0, 2: 3.0}, {}), rules) == (1, 2)


def test_without_a_better_choice_the_best_paused_run_continues() -> None:
    """While the last points train at the first rung; an empty slot without backfill."""
    now = standings({0: 2.0, 1: 1.0}, {}, {}, reached={2: 0})
    assert next_start(now, Rules(points=3, rungs=3)) == (1, 1)
    assert next_start(now, Rules(points=3, rungs=3, backfill=False)) is None


def test_not_worse_than_the_median() -> None:
    rules = Rules(points=9, rungs=2, median=True)
    assert next_start(standings({0: 5.0}, {}), rules) == (0, 1), "the first has nothing to be worse than"
    assert next_start(standings({0: 5.0, 1: 6.0}, {}, reached={0: 1}), rules) == (2, 0)
    assert next_start(standings({0: 5.0, 1: 6.0, 2: 5.5}, {}, reached={0: 1}), rules) == (2, 1)


def test_it_ends_with_the_finalists_of_synchronous_halving() -> None:
    """One of nine at the last rung; a better one that was started early counts; failed points never continue."""
    inf, rules = float("inf"), Rules(points=9, rungs=3)
    first = {point: float(point) for point in range(9)}
    second = {0: 3.0, 1: 2.0, 2: 1.0}
    assert not is_over(standings(first, second, {0: 1.0}), rules)
    assert is_over(standings(first, second, {2: 9.0}), rules)
    assert not is_over(standings(first, {**second, 7: 0.5}, {2: 9.0}), rules)
    assert is_over(standings(dict.fromkeys(range(9), inf), {}, {}), rules)
    assert next_start(standings({0: inf, 1: inf, 2: inf}, {}, {}), rules) == (3, 0)


def test_what_is_trained_to_the_end_gets_further_seeds() -> None:
    """Both of two finalists, also if one is better with one seed; before that only a slot that is free anyway."""
    rules = Rules(points=6, rungs=2, seeds=3)
    first = {point: float(point) for point in range(6)}
    assert not is_over(standings(first, {0: 2.0, 1: 1.0}, {}, {}), rules)
    assert next_start(standings(first, {0: 2.0, 1: 1.0}, {}, {}), rules) == (1, 2)
    assert next_start(standings(first, {0: 2.0, 1: 1.0}, {1: 3.0}, {}), rules) == (0, 2)
    assert next_start(standings(first, {0: 2.0, 1: 1.0}, {1: 3.0}, {}, reached={0: 2}), rules) == (1, 3)
    assert next_start(standings(first, {0: 2.0, 1: float("inf")}, {}, {}), rules) == (0, 2)
    assert is_over(standings(first, {0: 2.0, 1: 1.0}, {0: 2.0, 1: 3.0}, {0: 2.0, 1: 2.5}), rules)
    waiting = standings(first, {0: 2.0}, {}, {}, reached={1: 1})
    assert next_start(waiting, rules) == (0, 2)
    assert next_start(waiting, Rules(points=6, rungs=2, seeds=3, backfill=False)) is None


def simulate(search: Search, points: int, slots: int, studies: int, **rules: bool) -> list[tuple[Outcome, bool]]:
    """Return outcome and whether it found the best point, for equal studies of every search."""
    found: list[tuple[Outcome, bool]] = []
    for number in range(studies):
        study = SimulatedStudy(points, 3, 3, random.Random(SEED + number))
        outcome = search(study, slots, Rules(points, 3, new_first=True, **rules))
        found.append((outcome, outcome.winner == study.best))
    return found


@pytest.mark.parametrize("points, slots", [(27, 4), (27, 8), (60, 16)])
@pytest.mark.parametrize("studies", [pytest.param(60, id="few"), pytest.param(2000, id="many", marks=pytest.mark.slow)])
def test_slots_are_busy_and_the_winner_is_that_of_the_whole_grid(points: int, slots: int, studies: int) -> None:
    """At least 90 % of the slots' time is used, and in 95 % of the studies the best point is found; synchronous halving
    uses clearly less, takes longer, and finds it no more often.
    """
    asha = simulate(search_asynchronously, points, slots, studies)
    halving = simulate(halve_synchronously, points, slots, studies)
    assert mean(outcome.used >= 0.9 for outcome, _ in asha) >= 0.95
    assert mean(outcome.used for outcome, _ in asha) >= 0.97
    assert mean(outcome.used for outcome, _ in halving) <= 0.75
    assert mean(same for _, same in asha) >= max(0.95, mean(same for _, same in halving) - 0.01)
    assert mean(outcome.duration for outcome, _ in asha) <= mean(outcome.duration for outcome, _ in halving)


def test_a_simulated_search_without_backfill_works_less() -> None:
    """As much as synchronous halving and some runs that continued too early, and less than with backfill."""
    works = [
        mean(outcome.work for outcome, _ in found)
        for found in (
            simulate(halve_synchronously, 27, 8, 50),
            simulate(search_asynchronously, 27, 8, 50, backfill=False),
            simulate(search_asynchronously, 27, 8, 50),
        )
    ]
    assert works[0] < works[1] < 1.25 * works[0] < works[2]


@pytest.mark.parametrize("median", [False, True])
def test_any_order_of_results_ends(median: bool) -> None:
    """With failures and ties: the search never stalls, and trains no point twice to a rung."""
    rng = random.Random(SEED)
    for _ in range(200):
        sizes = rng.randint(1, 12), rng.randint(2, 4), rng.randint(2, 4)
        rules = Rules(*sizes, median, rng.random() < 0.5, rng.random() < 0.5, seeds=rng.randint(1, 3))
        now = standings(*({} for _ in range(rules.stages)))
        running, done = list[tuple[int, int]](), set[tuple[int, int]]()
        while not is_over(now, rules):
            while len(running) < 3 and (start := next_start(now, rules)):
                assert start not in done and now.reached.get(start[0], -1) == start[1] - 1
                done.add(start)
                running.append(start)
                now.reached[start[0]] = start[1]
            point, rung = running.pop(rng.randrange(len(running)))
            now.results[rung][point] = rng.choice([1.0, 2.0, rng.random(), float("inf")])
        assert {point for point, rung in done if rung == 0} == set(range(rules.points))
