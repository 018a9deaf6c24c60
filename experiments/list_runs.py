"""`nanogpt list` and `watch`: one line per run, once or refreshed until no run is in progress."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from experiments.find import find_runs, read_statuses
from launch.status import RunStatus, read_last_rows
from launch.watching import MAX_ROWS, format_age, format_loss, print_failures, show_until_done
from nanogpt.comparability import Comparability, compare_measurements
from nanogpt.config import CostConfig, ListConfig, TargetsConfig, WatchConfig
from nanogpt.console import print_text
from nanogpt.cost import Cost, choose_prices, read_cost
from nanogpt.errors import BadInput, LabError, one_line
from nanogpt.formatting import format_count, format_duration, format_table, shorten
from nanogpt.json_output import print_result
from nanogpt.loss_check import LossProblem, find_loss_problem
from nanogpt.measurement import Measurement, read_history
from nanogpt.run_directory import RunDirectory
from nanogpt.run_state import STATES, count_states

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """Runs, and messages about records that can't be read."""

    runs: Sequence[RunStatus]
    problems: Sequence[str]
    prices: CostConfig = field(default_factory=CostConfig)

    def json_fields(self) -> dict[str, Any]:
        """Return what `format=json` shows."""
        runs: list[dict[str, Any]] = []
        for run in self.runs:
            trouble = loss_trouble(run)
            more = {"time_left_s": compute_time_left(run), "loss_problem": trouble and trouble.description}
            runs.append(run.json_fields() | more | {"cost": find_cost(run, self.prices)})
        return {"runs": runs, "comparable": compare_last(self.runs), "problems": self.problems}


def list_runs(config: ListConfig) -> int:
    """Print all runs, last modified first. Return 0. Raises BadInput."""
    runs, problems = read_statuses(find_runs(config))
    chosen = [run for run in runs if config.state in (None, run.state)]
    if not chosen:
        states = ", ".join(sorted({run.state for run in runs}))
        raise BadInput(f"state={config.state}: none of {len(runs)} runs; there are: {states}")
    listing = Listing(sorted(chosen, key=lambda run: -run.updated), problems, config.cost)
    print_result(config.format, listing, partial(print_listing, config=config))
    return 0


def print_listing(listing: Listing, config: ListConfig) -> None:
    """Print the table, and below it failures, losses that look wrong, and unreadable records."""
    print_text(runs_table(listing.runs, config))
    print_failures(listing.runs, partial(display_name, config=config))
    for run in listing.runs:
        if trouble := loss_trouble(run):
            print_text(f"{display_name(run, config)}: {run.state}, {trouble.description}")
    for problem in listing.problems:
        logger.warning(problem)


def watch(config: WatchConfig) -> int:
    """Refresh the table until no run is in progress; without a terminal print a line per change. Ctrl-C leaves."""

    def read() -> list[RunStatus]:
        return sorted(read_statuses(find_runs(config))[0], key=urgency)

    def draw(runs: list[RunStatus]) -> str:
        return runs_table(runs, config, MAX_ROWS)

    runs = show_until_done(read, draw, partial(display_name, config=config), config.poll_s, with_losses=True)
    if runs is None:
        print_text("left; the runs go on")
        return 130
    print_text(draw(runs))
    return 0


def urgency(run: RunStatus) -> tuple[int, float]:
    return STATES.index(run.state) if run.state in STATES else len(STATES), -run.updated


def runs_table(runs: Sequence[RunStatus], config: TargetsConfig, rows: int | None = None) -> str:
    """Return a table with one line per run; with bits per byte and the reason if losses aren't comparable."""
    shown = runs[:rows]
    verdict = compare_last(shown)
    in_nats = verdict.unit == "nats"
    cells = [
        (
            display_name(run, config),
            f"{run.state}, {trouble.description.partition(' (')[0]}" if (trouble := loss_trouble(run)) else run.state,
            f"{run.step}/{run.steps if run.steps is not None else '?'}",
            "-" if not run.steps else f"{100 * run.step // run.steps} %",
            format_loss(run.val),
            format_loss(run.best),
            *([] if in_nats else [format_loss(run.bits_per_byte)]),
            "-" if run.rate is None else format_count(run.rate),
            format_time_left(run),
            format_age(run),
        )
        for run in shown
    ]
    heading = f"{len(runs)} run{'s' if len(runs) != 1 else ''}: {count_states(run.state for run in runs)}"
    bits = [] if in_nats else ["bits/byte"]
    text = format_table(heading, ("run", "state", "step", "done", "val", "best", *bits, "tok/s", "left", "age"), cells)
    if in_nats:
        return text
    also = "bits/byte are" if verdict.unit else "bits/byte neither"
    return f"{text}\nnote: val and best are not comparable, {also}: {one_line(verdict.reason, 300)}"


def compare_last(runs: Sequence[RunStatus]) -> Comparability:
    """Return the unit in which the last evaluations of runs are comparable."""
    return compare_measurements([last_measurement(run.path) for run in runs if run.val is not None])


def last_measurement(path: Path) -> Measurement:
    """Return what a run's last evaluation was measured on; an empty one for a run that can't be read."""
    try:
        changed = max((path / name).stat().st_mtime_ns for name in ("provenance.json", "config.json"))
        return read_measurement(path, changed)
    except (LabError, OSError):
        return Measurement()


@lru_cache(maxsize=10_000)
def read_measurement(path: Path, changed: int) -> Measurement:
    """Return the measurement of a run's last start. `changed` makes the cache forget a run whose files were written.

    Raises BadCheckpoint.
    """
    run = RunDirectory(path)
    return read_history(run.read_config(), run.read_starts(), path)[-1][1]


def find_cost(run: RunStatus, prices: CostConfig) -> Cost | None:
    """Return the cost of all starts of a run; None for one that can't be read."""
    directory = RunDirectory(run.path)
    try:
        chosen = choose_prices(prices, directory.read_config())
    except LabError:
        return None
    timing = read_last_rows(run.path / "timing.jsonl")
    return read_cost(directory.read_status(), directory.read_starts(), timing, chosen)


def loss_trouble(run: RunStatus) -> LossProblem | None:
    if run.state != "finished" or run.val is None or run.best is None:
        return None
    return find_loss_problem(run.val, run.best, last_measurement(run.path).vocab_size, run.train)


def display_name(run: RunStatus, config: TargetsConfig) -> str:
    """Return the name that commands accept, without runs_dir."""
    path = run.path
    if path.is_relative_to(config.runs_dir) and path != Path(config.runs_dir):
        path = path.relative_to(config.runs_dir)
    return shorten(one_line(str(path), 4000), 46)


def format_time_left(run: RunStatus) -> str:
    left = compute_time_left(run)
    return "-" if left is None else format_duration(left)


def compute_time_left(run: RunStatus) -> float | None:
    """Return the seconds that the remaining steps take at the current speed; None if it is not running."""
    if run.state != "running" or not run.rate or not run.steps:
        return None
    try:
        config = RunDirectory(run.path).read_config()
    except LabError:
        return None
    return max(0, run.steps - run.step) * config.training.batch_tokens / run.rate
