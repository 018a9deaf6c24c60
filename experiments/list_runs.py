"""`nanogpt list` and `watch`: one line per run, once or refreshed until no run is in progress."""

import time
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from experiments.find import find_runs
from experiments.progress import Progress, read_progress
from nanogpt.comparability import compare_measurements
from nanogpt.config import ListConfig, TargetsConfig, TrainConfig, WatchConfig
from nanogpt.console import LiveText, format_count, format_duration, format_table, say, shorten
from nanogpt.errors import BadInput, LabError, one_line
from nanogpt.loss_check import Trouble, find_trouble
from nanogpt.measurement import Measurement, read_history
from nanogpt.run_directory import RunDirectory
from nanogpt.run_state import STATES, WRONG

ROWS = 40  # of the live table


def list_runs(config: ListConfig) -> int:
    """Print all runs, last modified first. Return 0. Raise BadInput."""
    found, problems = read_progress(find_runs(config))
    chosen = [one for one in found if config.state in (None, one.state)]
    if not chosen:
        states = ", ".join(sorted({one.state for one in found}))
        raise BadInput(f"state={config.state}: none of {len(found)} runs; there are: {states}")
    say(progress_table(sorted(chosen, key=lambda one: -one.updated), config, describe_states(chosen)))
    for one in chosen:
        if one.state in WRONG and one.why:
            log = f"; log: {one_line(one.log)}" if one.log else ""
            say(f"{display_name(one, config)}: {one.state}: {one_line(one.why, 300)}{log}")
        if trouble := loss_trouble(one):
            say(f"{display_name(one, config)}: {one.state}, {trouble.words}")
    for problem in problems:
        say(f"warning: {problem}")
    return 0


def watch(config: WatchConfig) -> int:
    """Refresh the table until no run is in progress; without a terminal print a line per change. Ctrl-C leaves."""
    before: dict[Path, Progress] = {}
    board = LiveText()
    try:
        while True:
            now, _ = read_progress(find_runs(config))
            for one in now:
                if has_changed(one, before.get(one.path)):
                    board.note(describe_change(one, config))
            board.show(progress_table(sorted(now, key=urgency)[:ROWS], config, describe_states(now)))
            going = any(one.in_progress or is_newly_lost(one, before.get(one.path)) for one in now)
            before = {one.path: one for one in now}
            if not going:
                break
            time.sleep(config.poll_s)
    except KeyboardInterrupt:
        board.close()
        say("left; the runs go on")
        return 130
    board.close()
    say(progress_table(sorted(now, key=urgency)[:ROWS], config, describe_states(now)))
    return 0


def has_changed(one: Progress, before: Progress | None) -> bool:
    """Return whether a run has another state or another evaluation."""
    return before is None or (one.state, one.val) != (before.state, before.val)


def is_newly_lost(one: Progress, before: Progress | None) -> bool:
    """Return whether a job was lost just now: one that is being requeued may be in no queue for a moment."""
    return one.state == "lost" and one.point is not None and (before is None or before.state != "lost")


def urgency(one: Progress) -> tuple[int, float]:
    return STATES.index(one.state) if one.state in STATES else len(STATES), -one.updated


def describe_states(found: Sequence[Progress]) -> str:
    """Return e.g. `12 runs: 3 running, 9 finished`."""
    counts = Counter(one.state for one in found)
    return f"{len(found)} runs: " + ", ".join(f"{counts[state]} {state}" for state in sorted(counts))


def progress_table(found: Sequence[Progress], config: TargetsConfig, heading: str) -> str:
    """Return a table with one line per run; with bits per byte and the reason if losses aren't comparable."""
    verdict = compare_measurements([last_measurement(one.path) for one in found if one.val is not None])
    in_nats = verdict.unit == "nats"
    rows = [
        (
            display_name(one, config),
            f"{one.state}, {trouble.words.partition(' (')[0]}" if (trouble := loss_trouble(one)) else one.state,
            f"{one.step}/{one.steps if one.steps is not None else '?'}",
            "-" if not one.steps else f"{100 * one.step // one.steps} %",
            format_loss(one.val),
            format_loss(one.best),
            *([] if in_nats else [format_loss(one.bits_per_byte)]),
            "-" if one.rate is None else format_count(one.rate),
            format_time_left(one),
            format_age(one),
        )
        for one in found
    ]
    bits = [] if in_nats else ["bits/byte"]
    text = format_table(heading, ("run", "state", "step", "done", "val", "best", *bits, "tok/s", "left", "age"), rows)
    if in_nats:
        return text
    also = "bits/byte are" if verdict.unit else "bits/byte neither"
    return f"{text}\nnote: val and best are not comparable, {also}: {one_line(verdict.reason, 300)}"


def last_measurement(path: Path) -> Measurement:
    """Return what a run's last evaluation was measured on; an empty one for a run that can't be read."""
    try:
        changed = max((path / name).stat().st_mtime_ns for name in ("provenance.json", "config.json"))
        return read_measurement(path, changed)
    except (LabError, OSError):
        return Measurement()


@lru_cache(maxsize=10_000)
def read_measurement(path: Path, changed: int) -> Measurement:
    """Return it from the files last written at `changed`, the key of the cache. Raise BadCheckpoint."""
    run = RunDirectory(path)
    return read_history(run.config(), run.starts(), path)[-1][1]


def loss_trouble(one: Progress) -> Trouble | None:
    """Return what is wrong with the loss of a finished run."""
    if one.state != "finished" or one.val is None or one.best is None:
        return None
    return find_trouble(one.val, one.best, last_measurement(one.path).vocab_size, one.train)


def display_name(one: Progress, config: TargetsConfig) -> str:
    """Return the name that commands accept, without runs_dir."""
    path = one.path
    if path.is_relative_to(config.runs_dir) and path != Path(config.runs_dir):
        path = path.relative_to(config.runs_dir)
    return shorten(one_line(str(path), 4000), 46)


def format_loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def format_age(one: Progress) -> str:
    """Return the time since the run last wrote something."""
    return format_duration(time.time() - one.updated) if one.updated else "-"


def format_time_left(one: Progress) -> str:
    """Return the time that the remaining steps take at the current speed."""
    if one.state != "running" or not one.rate or not one.steps:
        return "-"
    try:
        config: TrainConfig = RunDirectory(one.path).config()
    except LabError:
        return "-"
    return format_duration(max(0, one.steps - one.step) * config.training.batch_tokens / one.rate)


def describe_change(one: Progress, config: TargetsConfig) -> str:
    """Return one line about a change, for a log."""
    val = f"  val {one.val:.4f}" if one.val is not None else ""
    why = f"  {one_line(one.why, 200)}" if one.why else ""
    steps = f" of {one.steps}" if one.steps else ""
    return f"{display_name(one, config)}: {one.state} at step {one.step}{steps}{val}{why}"
