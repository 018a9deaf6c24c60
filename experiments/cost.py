"""Cost of studies: hours of devices, energy and money of all their runs, lost work included."""

from collections.abc import Iterable, Sequence

from experiments.document import Cell
from experiments.results import RunResult
from nanogpt.cost import Cost, add_costs


def study_cost(results: Iterable[RunResult]) -> Cost:
    """Return the cost of all starts of these runs; a part is None if it isn't known for one of them."""
    return add_costs(result.cost for result in results)


def has_prices(results: Iterable[RunResult]) -> bool:
    return any(result.cost.currency for result in results)


def price_cell(results: Sequence[RunResult]) -> Cell:
    """Return the money that runs cost together."""
    cost = study_cost(results)
    return Cell(cost.price, cost.money)


def describe_cost(results: Sequence[RunResult]) -> str:
    """Return a sentence on what a study cost; empty if that isn't known."""
    words = study_cost(results).describe()
    return f"Cost of all starts, with evaluation, saving and lost work: {words}. " if words else ""
