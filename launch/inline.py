"""The points of a study in this process, one after the other."""

import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cli.entry import is_rank, report_exception, run_points
from cli.sweep_config import SweepConfig
from launch.loaded_code import keep_code
from launch.precision_check import check_precisions
from launch.preview import preview, states, todo
from launch.study import Study
from launch.watching import status_table, tell_wrong
from nanogpt.config import TrainConfig
from nanogpt.console import say
from nanogpt.errors import STOPPED, Diverged, PeerLost, one_line
from nanogpt.run_directory import RunDirectory
from nanogpt.run_state import FAILED

MOST_EQUAL = 3  # equal failures in a row, before the first step, after which the other points are not tried


def run_here(study: Study, main: Callable[[TrainConfig], int], settings: SweepConfig) -> int:
    """Train what isn't done. A point that fails, whatever with, doesn't stop the others; Ctrl-C does.

    Returns the exit code of the first that failed, now or before.
    """
    if is_rank():  # ranks must all do the same, whatever each of them finds on disk
        return run_points([member.config for member in study.members], main)
    check_precisions(study.members, here=True)
    before = states(study)
    preview(study, before, settings)
    if study.members[0].config.dry_run:
        return main(study.members[0].config)
    ends: dict[Path, tuple[int, str]] = {}
    waiting = todo(study.members, before, settings)
    with keep_code(waiting), listening() as heard:
        for member in waiting:
            number = study.members.index(member) + 1
            say(f"=== point {number} of {len(study.members)}: {one_line(member.run.name)}")
            ends[member.run] = code, _ = attempt(main, member.config)
            if code in (STOPPED, PeerLost.exit_code) or code >= 128:
                return code
            if heard:  # when the point was done but for its last words
                say(f"{signal.Signals(heard[0]).name}: the sweep stopped; the same command goes on")
                return STOPPED
            if why := repeated_failure(ends):
                say(
                    f"the sweep stops: {MOST_EQUAL} points in a row ended before their first step for the same reason; "
                    f"{len(waiting) - len(ends)} were not started: {one_line(why, 300)}"
                )
                break
    points = states(study)
    for run, (code, why) in ends.items():
        if code and points[run].state not in FAILED:  # before it began to train
            points[run].state, points[run].why = "failed", why
    say(status_table(study.path, list(points.values())))
    tell_wrong(list(points.values()))
    old = {"diverged": Diverged.exit_code, "failed": 1}
    codes = [ends[run][0] if run in ends else old.get(point.state, 0) for run, point in points.items()]
    return next((code for code in codes if code), 0)


def repeated_failure(ends: Mapping[Path, tuple[int, str]]) -> str:
    """Return the reason for which the last points all failed before their first step, or nothing."""
    last = list(ends.items())[-MOST_EQUAL:]
    if len(last) < MOST_EQUAL or not all(
        code and not RunDirectory(run).status().get("step") for run, (code, _) in last
    ):
        return ""
    reasons = {why.replace(str(run), "").replace(run.name, "") for run, (_, why) in last}
    return reasons.pop() if len(reasons) == 1 else ""


@contextmanager
def listening() -> Generator[list[int], None, None]:
    """The signals to stop that come while inside, also those that a training that was just ending took no notice of."""
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def hear(number: int, frame: FrameType | None) -> None:
        if signal.getsignal(number) == hear:  # nothing trains that could save first
            signal.default_int_handler(number, frame)
        heard.append(number)

    for number, handler in before.items():
        if handler == signal.default_int_handler or handler == signal.SIG_DFL:
            signal.signal(number, hear)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def attempt(main: Callable[[TrainConfig], int], config: TrainConfig) -> tuple[int, str]:
    """Train one point. Returns its exit code and the reason, also when something unforeseen went wrong."""
    try:
        return main(config), ""
    except Exception as error:
        return report_exception("train", error)
