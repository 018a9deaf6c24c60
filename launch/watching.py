"""The table of a study's jobs, once or refreshed until all are done."""

import time
from collections import Counter
from pathlib import Path

from launch.status import JobQueues, PointStatus, read_points
from nanogpt.console import LiveText, format_duration, format_table, say
from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.run_state import DONE, OPEN, WRONG

ORDER = (*WRONG, *reversed(OPEN), "stopped", "new", *reversed(DONE))
"""Those that need a person first."""

ROWS = 40  # of the live table; status shows all


def count_states(points: list[PointStatus]) -> str:
    """Return e.g. `3 running, 1 failed`."""
    counts = Counter(point.state for point in points)
    return ", ".join(f"{counts[word]} {word}" for word in reversed(ORDER) if counts[word])


def status_table(study: Path, points: list[PointStatus], rows: int | None = None) -> str:
    """Return a table with one line per point; with a limit of `rows`, those that need attention first."""
    shown = points if rows is None else sorted(points, key=lambda point: ORDER.index(point.state))[:rows]
    cells = [
        (
            one_line(point.run.name, 60),
            point.job or "-",
            point.state,
            f"{point.step}/{point.steps if point.steps is not None else '?'}",
            str(point.restarts),
            "-" if point.val is None else f"{point.val:.4f}",
            format_age(point),
            one_line(point.why, 24),
        )
        for point in shown
    ]
    title = f"{one_line(study)}: {count_states(points)}"
    more = f"\n… and {len(points) - len(shown)} more" if len(points) > len(shown) else ""
    return format_table(title, ("run", "job", "state", "step", "restarts", "val", "updated", "why"), cells) + more


def format_age(point: PointStatus) -> str:
    return f"{format_duration(time.time() - point.updated)} ago" if point.updated else "-"


def watch(study: Path, pause: float, runs: set[Path] | None = None) -> int:
    """Show the points until none is in progress. Return 0 if all finished, else the exit code of the first that
    didn't.

    Ctrl-C leaves; the jobs go on. A point is lost only if it is in no queue twice in a row: a job that is being
    requeued may be in none for a moment.
    """
    before: dict[Path, str] = {}
    board = LiveText()
    try:
        while True:
            points = [point for point in read_points(study, JobQueues()) if runs is None or point.run in runs]
            if len(points) < len(runs or {study}):
                raise BadCheckpoint(f"{one_line(study)}: what was submitted is no longer noted there; was it deleted?")
            note_changes(points, before, board)
            board.show(status_table(study, points, ROWS))
            open_ = [p for p in points if p.state in OPEN or (p.state == "lost" and before.get(p.run) != "lost")]
            before = {point.run: point.state for point in points}
            if not open_:
                break
            time.sleep(pause)
    except KeyboardInterrupt:
        board.close()
        say(f"left; the jobs go on. nanogpt status {one_line(study)}; the same command watches again")
        return 130
    board.close()
    return print_outcome(study, points)


def note_changes(points: list[PointStatus], before: dict[Path, str], board: LiveText) -> None:
    """Print a line for every point whose state changed, where no table is drawn."""
    for point in points:
        if before.get(point.run) != point.state:
            step = f" at step {point.step}" if point.step else ""
            board.note(
                f"{one_line(point.run.name)}: {point.state}{step}{f': {one_line(point.why, 200)}' if point.why else ''}"
            )


def print_failures(points: list[PointStatus]) -> None:
    """Print below the table what failed, the full reason and the log."""
    groups: dict[tuple[str, str], list[PointStatus]] = {}
    for point in points:
        if point.state in WRONG:
            groups.setdefault((point.state, point.why), []).append(point)
    for (state, why), (first, *others) in groups.items():
        log = f"; log: {one_line(first.log)}" if first.log else ""
        more = f"; the same of {len(others)} more" if others else ""
        say(f"{one_line(first.run.name)}: {state}: {one_line(why, 300)}{log}{more}")


def print_outcome(study: Path, points: list[PointStatus]) -> int:
    """Print the final table. Return the exit code."""
    say(status_table(study, points, ROWS))
    wrong = [point for point in points if point.state not in DONE]
    print_failures(wrong[:ROWS])
    return next((point.code for point in wrong if point.code), 1) if wrong else 0
