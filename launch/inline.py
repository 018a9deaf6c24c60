"""Run the points of a study in this process, one after the other."""

import logging
import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cli.entry import is_rank, report_exception, run_points
from cli.sweep_config import SweepConfig
from launch.fused import group_runs, train_group
from launch.loaded_code import keep_code
from launch.precision_check import check_precisions
from launch.preview import build_preview, log_preview, read_states, runs_to_start
from launch.status import RunStatus
from launch.study import Study
from launch.watching import print_failures, status_table
from nanogpt.config import TrainConfig
from nanogpt.console import print_text
from nanogpt.distributed.signals import restore_handlers
from nanogpt.errors import STOPPED, Diverged, PeerLost, one_line
from nanogpt.json_output import print_result
from nanogpt.run_directory import RunDirectory
from nanogpt.run_state import FAILED

logger = logging.getLogger(__name__)

MAX_EQUAL_FAILURES = 3  # in a row and before the first step, after which the other points are not tried


def run_inline(study: Study, main: Callable[[TrainConfig], int], settings: SweepConfig) -> int:
    """Train the points that aren't done. A failed point doesn't stop the others; Ctrl-C does.

    Return the first exit code that isn't 0, of this call or of earlier ones.
    """
    if is_rank():  # all ranks must do the same, so none decides by what it finds on disk
        return run_points([planned.config for planned in study.runs], main)
    check_precisions(study.runs, here=True)
    before = read_states(study)
    if (code := preview_points(study, before, settings, main)) is not None:
        return code
    ends: dict[Path, tuple[int, str]] = {}
    waiting, models = runs_to_start(study.runs, before, settings), settings.models_at_once
    with keep_code(waiting), trap_signals() as received:
        for group in group_runs(waiting, models) if models > 1 else [[planned] for planned in waiting]:
            for planned in group:
                number = study.runs.index(planned) + 1
                logger.info(f"=== point {number} of {len(study.runs)}: {one_line(planned.path.name)}")
            found = train_group(group) if models > 1 else [train_point(main, planned.config) for planned in group]
            ends |= {planned.path: end for planned, end in zip(group, found, strict=True)}
            if stops := [code for code, _ in found if code in (STOPPED, PeerLost.exit_code) or code >= 128]:
                return stops[0]
            if received:  # the point was about to end and no longer handled it
                logger.info(f"{signal.Signals(received[0]).name}: the sweep stopped; the same command continues")
                return STOPPED
            if why := repeated_failure(ends):
                print_text(
                    f"the sweep stops: {MAX_EQUAL_FAILURES} points in a row ended before their first step for the same "
                    f"reason; {len(waiting) - len(ends)} were not started: {one_line(why, 300)}"
                )
                break
    return print_ends(study, ends)


def preview_points(
    study: Study, before: dict[Path, RunStatus], settings: SweepConfig, main: Callable[[TrainConfig], int]
) -> int | None:
    """Print what is done and what is about to start. Return the exit code of a dry run; None: it is none."""
    first = study.runs[0].config
    print_result(first.format, build_preview(study, before, settings), log_preview)
    if not first.dry_run:
        return None
    return main(first) if first.format == "text" else 0


def print_ends(study: Study, ends: Mapping[Path, tuple[int, str]]) -> int:
    """Print the state of every point. Return the first exit code that isn't 0.

    `ends` has the exit codes and reasons of the points that were trained now.
    """
    points = read_states(study)
    for run, (code, why) in ends.items():
        if code and points[run].state not in FAILED:  # it failed before training started
            points[run].state, points[run].why = "failed", why
    print_text(status_table(study.path, list(points.values())))
    print_failures(list(points.values()))
    earlier = {"diverged": Diverged.exit_code, "failed": 1}
    codes = [ends[run][0] if run in ends else earlier.get(point.state, 0) for run, point in points.items()]
    return next((code for code in codes if code), 0)


def repeated_failure(ends: Mapping[Path, tuple[int, str]]) -> str:
    """Return the reason if the last points failed for the same one before their first step, else an empty string."""
    last = list(ends.items())[-MAX_EQUAL_FAILURES:]
    if len(last) < MAX_EQUAL_FAILURES or not all(
        code and not RunDirectory(run).read_status().get("step") for run, (code, _) in last
    ):
        return ""
    reasons = {why.replace(str(run), "").replace(run.name, "") for run, (_, why) in last}
    return reasons.pop() if len(reasons) == 1 else ""


@contextmanager
def trap_signals() -> Generator[list[int], None, None]:
    """Yield a list of the SIGINT and SIGTERM received, including those that a point near its end did not act on."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if signal.getsignal(number) == handle:  # no point is training that would save first
            signal.default_int_handler(number, frame)
        received.append(number)

    with restore_handlers((signal.SIGINT, signal.SIGTERM)) as before:
        for number, handler in before.items():
            if handler == signal.default_int_handler or handler == signal.SIG_DFL:
                signal.signal(number, handle)
        yield received


def train_point(main: Callable[[TrainConfig], int], config: TrainConfig) -> tuple[int, str]:
    """Train one point. Return its exit code and the reason; no exception leaves this function."""
    try:
        return main(config), ""
    except Exception as error:
        return report_exception("train", error)
