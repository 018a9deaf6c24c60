"""`nanogpt list` and `watch`: every run in a line, once, or again and again until none is on its way."""

import time
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from experiments.find import find
from experiments.progress import Progress, look
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
    """All runs, those written to last first. Raises BadInput."""
    found, problems = look(find(config))
    chosen = [one for one in found if config.state in (None, one.state)]
    if not chosen:
        states = ", ".join(sorted({one.state for one in found}))
        raise BadInput(f"state={config.state}: none of {len(found)} runs; there are: {states}")
    say(progress_table(sorted(chosen, key=lambda one: -one.updated), config, title(chosen)))
    for one in chosen:
        if one.state in WRONG and one.why:
            log = f"; log: {one_line(one.log)}" if one.log else ""
            say(f"{name(one, config)}: {one.state}: {one_line(one.why, 300)}{log}")
        if trouble := trouble_of(one):
            say(f"{name(one, config)}: {one.state}, {trouble.words}")
    for problem in problems:
        say(f"warning: {problem}")
    return 0


def watch(config: WatchConfig) -> int:
    """The table until no run is on its way; where there is no terminal, a line for every change. Ctrl-C leaves."""
    before: dict[Path, Progress] = {}
    board = LiveText()
    try:
        while True:
            now, _ = look(find(config))
            for one in now:
                if changed(one, before.get(one.path)):
                    board.note(line(one, config))
            board.show(progress_table(sorted(now, key=urgency)[:ROWS], config, title(now)))
            going = any(one.going or just_lost(one, before.get(one.path)) for one in now)
            before = {one.path: one for one in now}
            if not going:
                break
            time.sleep(config.poll_s)
    except KeyboardInterrupt:
        board.close()
        say("left; the runs go on")
        return 130
    board.close()
    say(progress_table(sorted(now, key=urgency)[:ROWS], config, title(now)))
    return 0


def changed(one: Progress, before: Progress | None) -> bool:
    """Whether a run has another state, or another evaluation."""
    return before is None or (one.state, one.val) != (before.state, before.val)


def just_lost(one: Progress, before: Progress | None) -> bool:
    """A job that is being put back into its queue may be nowhere for a moment."""
    return one.state == "lost" and one.point is not None and (before is None or before.state != "lost")


def urgency(one: Progress) -> tuple[int, float]:
    return STATES.index(one.state) if one.state in STATES else len(STATES), -one.updated


def title(found: Sequence[Progress]) -> str:
    """`12 runs: 3 running, 9 finished`."""
    counts = Counter(one.state for one in found)
    return f"{len(found)} runs: " + ", ".join(f"{counts[state]} {state}" for state in sorted(counts))


def progress_table(found: Sequence[Progress], config: TargetsConfig, heading: str) -> str:
    """One line a run; with bits per byte, and why, where the losses of these runs are not comparable."""
    verdict = compare_measurements([measurement_of(one.path) for one in found if one.val is not None])
    in_nats = verdict.unit == "nats"
    rows = [
        (
            name(one, config),
            f"{one.state}, {trouble.words.partition(' (')[0]}" if (trouble := trouble_of(one)) else one.state,
            f"{one.step}/{one.steps if one.steps is not None else '?'}",
            "-" if not one.steps else f"{100 * one.step // one.steps} %",
            loss(one.val),
            loss(one.best),
            *([] if in_nats else [loss(one.bits)]),
            "-" if one.rate is None else format_count(one.rate),
            left(one),
            age(one),
        )
        for one in found
    ]
    bits = [] if in_nats else ["bits/byte"]
    text = format_table(heading, ("run", "state", "step", "done", "val", "best", *bits, "tok/s", "left", "age"), rows)
    if in_nats:
        return text
    also = "bits/byte are" if verdict.unit else "bits/byte neither"
    return f"{text}\nnote: val and best are not comparable, {also}: {one_line(verdict.reason, 300)}"


def measurement_of(path: Path) -> Measurement:
    """Return what a run's last evaluation was measured on; for a run that can't be read nothing is known."""
    try:
        changed = max((path / name).stat().st_mtime_ns for name in ("provenance.json", "config.json"))
        return read_measurement(path, changed)
    except (LabError, OSError):
        return Measurement()


@lru_cache(maxsize=10_000)
def read_measurement(path: Path, changed: int) -> Measurement:
    """Read it from the files that were last written at `changed`. Raises BadCheckpoint."""
    run = RunDirectory(path)
    return read_history(run.config(), run.starts(), path)[-1][1]


def trouble_of(one: Progress) -> Trouble | None:
    """Return what is wrong with the loss of a finished run."""
    if one.state != "finished" or one.val is None or one.best is None:
        return None
    return find_trouble(one.val, one.best, measurement_of(one.path).vocab_size, one.train)


def name(one: Progress, config: TargetsConfig) -> str:
    """As it can be given to commands: without runs_dir."""
    path = one.path
    if path.is_relative_to(config.runs_dir) and path != Path(config.runs_dir):
        path = path.relative_to(config.runs_dir)
    return shorten(one_line(str(path), 4000), 46)


def loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def age(one: Progress) -> str:
    """Since its last sign of life."""
    return format_duration(time.time() - one.updated) if one.updated else "-"


def left(one: Progress) -> str:
    """The time that the rest of the steps takes at the present speed."""
    if one.state != "running" or not one.rate or not one.steps:
        return "-"
    try:
        config: TrainConfig = RunDirectory(one.path).config()
    except LabError:
        return "-"
    return format_duration(max(0, one.steps - one.step) * config.training.batch_tokens / one.rate)


def line(one: Progress, config: TargetsConfig) -> str:
    """One change, for a log."""
    val = f"  val {one.val:.4f}" if one.val is not None else ""
    why = f"  {one_line(one.why, 200)}" if one.why else ""
    return f"{name(one, config)}: {one.state} at step {one.step}{f' of {one.steps}' if one.steps else ''}{val}{why}"
