"""The table of a study's jobs, and the loop that shows runs until none is in progress."""

import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from launch.status import RunStatus, read_points
from nanogpt.console import print_text
from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.formatting import format_duration, format_table
from nanogpt.progress import LiveText
from nanogpt.run_state import IN_PROGRESS, NEEDS_ATTENTION, REACHED_GOAL, count_states

ORDER = (
    *NEEDS_ATTENTION,
    *reversed(IN_PROGRESS),
    "stopped",
    "new",
    *reversed(REACHED_GOAL),
)  # points that need attention first
MAX_ROWS = 40  # of the live table; status shows all


def base_name(run: RunStatus) -> str:
    return one_line(run.path.name, 60)


def show_until_done(
    read: Callable[[], list[RunStatus]],
    draw: Callable[[list[RunStatus]], str],
    name: Callable[[RunStatus], str],
    poll_s: float,
    with_losses: bool = False,
    may_start_runs: Callable[[], bool] = lambda: False,
) -> list[RunStatus] | None:
    """Show the runs that `read` returns until none is in progress and `may_start_runs` says no. Return them as they
    were last, None after Ctrl-C.

    A terminal shows `draw`'s text. Elsewhere a line is printed for each change of a state, or `with_losses` of a loss.
    A point is lost only if it is in no queue twice in a row: a job that is being requeued may be in none for a moment.
    """
    before: dict[Path, RunStatus] = {}
    live = LiveText()
    try:
        while True:
            going = may_start_runs()
            runs = read()
            for run in runs:
                last = before.get(run.path)
                if last is None or run.state != last.state or (with_losses and run.val != last.val):
                    live.note(describe_change(run, name(run)))
                newly_lost = run.state == "lost" and run.submission and (last is None or last.state != "lost")
                going |= bool(run.in_progress or newly_lost)
            live.show(draw(runs))
            before = {run.path: run for run in runs}
            if not going:
                return runs
            time.sleep(poll_s)
    except KeyboardInterrupt:
        return None
    finally:
        live.close()


def describe_change(run: RunStatus, name: str) -> str:
    step = f" at step {run.step}{f' of {run.steps}' if run.steps else ''}" if run.step else ""
    val = "" if run.val is None else f"  val {run.val:.4f}"
    return f"{name}: {run.state}{step}{val}{f': {one_line(run.why, 200)}' if run.why else ''}"


def watch_search(study: Path, poll_s: float, in_progress: Callable[[], bool]) -> list[RunStatus] | None:
    """Show a study's points as long as its search is in progress, or one of them. Return them; None after Ctrl-C."""
    return show_until_done(
        lambda: read_points(study),
        partial(status_table, study, rows=MAX_ROWS),
        base_name,
        poll_s,
        may_start_runs=in_progress,
    )


def watch(study: Path, poll_s: float, paths: set[Path] | None = None) -> int:
    """Show a study's points until none is in progress. Return 0 if all finished, else the first failure's exit code."""

    def read() -> list[RunStatus]:
        points = read_points(study, wanted=paths)
        if len(points) < len(paths or {study}):
            raise BadCheckpoint(f"{one_line(study)}: the records of what was submitted are gone; were they deleted?")
        return points

    points = show_until_done(read, partial(status_table, study, rows=MAX_ROWS), base_name, poll_s)
    return print_left(study) if points is None else print_outcome(study, points)


def print_left(study: Path) -> int:
    """Say that the jobs go on. Return the exit code of Ctrl-C."""
    print_text(f"left; the jobs go on. nanogpt status {one_line(study)}; the same command watches again")
    return 128 + signal.SIGINT


def status_table(study: Path, points: Sequence[RunStatus], rows: int | None = None) -> str:
    """Return a table with one line per point; with a limit of `rows`, those that need attention first."""
    shown = points if rows is None else sorted(points, key=lambda point: ORDER.index(point.state))[:rows]
    cells = [
        (
            base_name(point),
            point.job or "-",
            point.state,
            f"{point.step}/{point.steps if point.steps is not None else '?'}",
            str(point.restarts),
            format_loss(point.val),
            format_age(point),
            one_line(point.why, 24),
        )
        for point in shown
    ]
    title = f"{one_line(study)}: {count_states(point.state for point in points)}"
    more = f"\n… and {len(points) - len(shown)} more" if len(points) > len(shown) else ""
    return format_table(title, ("run", "job", "state", "step", "restarts", "val", "age", "why"), cells) + more


def format_loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def format_age(run: RunStatus) -> str:
    """Return the time since the run last wrote something."""
    return format_duration(time.time() - run.updated) if run.updated else "-"


def print_failures(runs: Sequence[RunStatus], name: Callable[[RunStatus], str] = base_name) -> None:
    """Print below a table why runs failed and where their logs are; equal reasons once."""
    groups: dict[tuple[str, str], list[RunStatus]] = {}
    for run in runs:
        if run.state in NEEDS_ATTENTION:
            groups.setdefault((run.state, run.why), []).append(run)
    for (state, why), (first, *others) in groups.items():
        log = f"; log: {one_line(first.log)}" if first.log else ""
        more = f"; the same for {len(others)} more" if others else ""
        print_text(f"{name(first)}: {state}: {one_line(why, 300)}{log}{more}")


def print_outcome(study: Path, points: Sequence[RunStatus]) -> int:
    print_text(status_table(study, points, MAX_ROWS))
    wrong = [point for point in points if point.state not in REACHED_GOAL]
    print_failures(wrong[:MAX_ROWS])
    return next((point.code for point in wrong if point.code), 1) if wrong else 0
