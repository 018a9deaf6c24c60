"""The table of a study, once or until all its points are done; jobs go on whoever watches."""

import time
from collections import Counter
from pathlib import Path

from launch.status import Cluster, Point, points_of
from nanogpt.console import LiveText, format_duration, format_table, say
from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.run_state import DONE, OPEN, WRONG

ORDER = (*WRONG, *reversed(OPEN), "stopped", "new", *reversed(DONE))
"""Those that need a person first."""

ROWS = 40  # of the live table; status shows all


def summary(points: list[Point]) -> str:
    """`3 running, 1 failed`."""
    counts = Counter(point.state for point in points)
    return ", ".join(f"{counts[word]} {word}" for word in reversed(ORDER) if counts[word])


def status_table(study: Path, points: list[Point], rows: int | None = None) -> str:
    """One line a point; those that need a person first when not all are shown."""
    shown = points if rows is None else sorted(points, key=lambda point: ORDER.index(point.state))[:rows]
    cells = [
        (
            one_line(point.run.name, 60),
            point.job or "-",
            point.state,
            f"{point.step}/{point.steps if point.steps is not None else '?'}",
            str(point.restarts),
            "-" if point.val is None else f"{point.val:.4f}",
            since(point),
            one_line(point.why, 24),
        )
        for point in shown
    ]
    title = f"{one_line(study)}: {summary(points)}"
    more = f"\n… and {len(points) - len(shown)} more" if len(points) > len(shown) else ""
    return format_table(title, ("run", "job", "state", "step", "restarts", "val", "updated", "why"), cells) + more


def since(point: Point) -> str:
    return f"{format_duration(time.time() - point.updated)} ago" if point.updated else "-"


def watch(study: Path, pause: float, runs: set[Path] | None = None) -> int:
    """Show the points until none is on its way. Returns 0 when all are finished, else the code of the first that isn't.

    Ctrl-C leaves; the jobs go on. A point counts as lost when it is in no queue twice in a row: a job that is being put
    back may be nowhere for a moment.
    """
    before: dict[Path, str] = {}
    board = LiveText()
    try:
        while True:
            points = [point for point in points_of(study, Cluster()) if runs is None or point.run in runs]
            if len(points) < len(runs or {study}):
                raise BadCheckpoint(f"{one_line(study)}: what was submitted is no longer noted there; was it deleted?")
            tell_changes(points, before, board)
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
    return verdict(study, points)


def tell_changes(points: list[Point], before: dict[Path, str], board: LiveText) -> None:
    """A line for every point whose state is another than last time, where no table is drawn."""
    for point in points:
        if before.get(point.run) != point.state:
            step = f" at step {point.step}" if point.step else ""
            board.note(
                f"{one_line(point.run.name)}: {point.state}{step}{f': {one_line(point.why, 200)}' if point.why else ''}"
            )


def tell_wrong(points: list[Point]) -> None:
    """Below the table, in full: what went wrong, and where it can be read."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        if point.state in WRONG:
            groups.setdefault((point.state, point.why), []).append(point)
    for (state, why), (first, *others) in groups.items():
        log = f"; log: {one_line(first.log)}" if first.log else ""
        more = f"; the same of {len(others)} more" if others else ""
        say(f"{one_line(first.run.name)}: {state}: {one_line(why, 300)}{log}{more}")


def verdict(study: Path, points: list[Point]) -> int:
    """The last words, and the exit code."""
    say(status_table(study, points, ROWS))
    wrong = [point for point in points if point.state not in DONE]
    tell_wrong(wrong[:ROWS])
    return next((point.code for point in wrong if point.code), 1) if wrong else 0
