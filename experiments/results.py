"""What every run came to: its config, its losses, its time and what it took, read once and kept as values."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.missing_points import never_started
from experiments.progress import Progress, progress_of
from nanogpt.comparability import agree_in_nats
from nanogpt.config import Against, Metric, TrainConfig
from nanogpt.errors import LabError, one_line
from nanogpt.estimates.flops import flops_per_token
from nanogpt.loss_check import Trouble, find_trouble
from nanogpt.measurement import Measurement, measured_at, read_history, requested
from nanogpt.metrics_file import Row, as_count, read_rows_and_skipped
from nanogpt.run_directory import RunDirectory
from nanogpt.schema import signature

Start = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One run, or a point of a study that hasn't begun."""

    progress: Progress
    config: TrainConfig
    train: tuple[Row, ...] = ()
    """Rows of training steps."""
    evals: tuple[Row, ...] = ()
    """Rows of evaluations."""
    clock: tuple[tuple[int, float], ...] = ()
    """(step, seconds of training until then)."""
    device_seconds: float | None = None
    """Seconds times ranks; None where nobody noted how many ranks there were."""
    gpu: bool = False
    flops_per_token: float | None = None
    starts: tuple[Start, ...] = ()
    problems: tuple[str, ...] = ()
    """What of its files can't be read."""
    measurement: Measurement = field(default_factory=Measurement)
    """What its last evaluation was measured on; `evals` has only rows that were measured on the same."""

    @property
    def path(self) -> Path:
        return self.progress.path

    @property
    def finished(self) -> bool:
        return self.progress.state == "finished"

    @property
    def whole(self) -> bool:
        """Finished, and the evaluation of its last step is there: what else its metrics end with isn't its result."""
        return self.finished and self.last is not None and self.last["step"] >= (self.progress.steps or 0)

    @property
    def last(self) -> Row | None:
        return self.evals[-1] if self.evals else None

    def value(self, metric: Metric) -> float | None:
        """Return the validation loss or the bits per byte of the last evaluation, or the lowest of all."""
        key = metric.removeprefix("best_")
        found = [row[key] for row in self.evals if key in row]
        if not found or (metric == key and key not in self.evals[-1]):
            return None
        return found[-1] if metric == key else min(found)

    @property
    def trouble(self) -> Trouble | None:
        """What is wrong with the loss of a finished run; None where nothing is."""
        if not self.finished or self.last is None:
            return None
        best = min(row["val_loss"] for row in self.evals)
        return find_trouble(self.last["val_loss"], best, self.measurement.vocab_size, self.last.get("train_loss"))

    @property
    def step(self) -> int:
        return int(max((rows[-1]["step"] for rows in (self.train, self.evals) if rows), default=0))

    @property
    def tokens(self) -> float:
        return max((rows[-1]["tokens"] for rows in (self.train, self.evals) if rows), default=0.0)

    @property
    def seconds(self) -> float | None:
        return self.clock[-1][1] if self.clock else None

    @property
    def epochs(self) -> float | None:
        """How often the run trained on its data; None for a run that began before rows said so."""
        found = [rows[-1]["epoch"] for rows in (self.train, self.evals) if rows and "epoch" in rows[-1]]
        return max(found, default=None)

    @property
    def tokens_per_second(self) -> float | None:
        if not self.seconds:
            return None
        return self.tokens_at(self.clock[-1][0]) / self.seconds

    def tokens_at(self, step: float) -> float:
        """How many it had seen."""
        return step * self.config.training.batch_tokens if not self.tokens else self.tokens * step / max(1, self.step)

    def along(self, rows: Sequence[Row], x: Against) -> list[float] | None:
        """Where rows are on an axis; None where that isn't known."""
        if x == "steps":
            return [row["step"] for row in rows]
        if x == "tokens":
            return [row["tokens"] for row in rows]
        if x == "flops":
            return None if self.flops_per_token is None else [row["tokens"] * self.flops_per_token for row in rows]
        if not self.clock:
            return None
        steps, seconds = zip((0, 0.0), *self.clock, strict=True)
        return [float(one) for one in np.interp([row["step"] for row in rows], steps, seconds)]


def read_all(progress: Sequence[Progress]) -> tuple[list[Result], list[str]]:
    """The results of runs and points; and the runs that can't be read, each with the reason."""
    results: list[Result] = []
    problems: list[str] = []
    for one in progress:
        try:
            results.append(read(one))
        except LabError as error:
            problems.append(f"{one_line(one.path)}: left out: {one_line(error, 300)}")
        except OSError as error:
            file = Path(error.filename or one.path)
            problems.append(f"{one_line(one.path)}: left out: {one_line(file)} can't be read: {error.strerror}")
    return results, problems


def missing(results: Sequence[Result], folders: Sequence[Path]) -> list[Result]:
    """The points in one of the folders that the command of a sweep asked for and that it didn't come to."""
    whole = [one for one in results if any(one.path.resolve().parent.is_relative_to(f.resolve()) for f in folders)]
    there = {signature(result.config) for result in whole}
    never = never_started([(result.path, result.config, result.starts) for result in whole], there)
    why = "never started"
    return [
        Result(replace(progress_of(path), state="missing", why=why), config, measurement=requested(config))
        for path, config in never
    ]


def read(progress: Progress) -> Result:
    """One run. Raises BadCheckpoint for a config that can't be read, OSError; what else is damaged is noted."""
    path, run = progress.path, RunDirectory(progress.path)
    if not (path / "config.json").exists() and progress.point and progress.point.submission:
        config = progress.point.submission.config(progress.point.index)
        return Result(progress, config, measurement=requested(config))
    config = run.config()
    rows, bad = in_order(*read_rows_and_skipped(path / "metrics.jsonl"), "tokens")
    timing, bad_times = in_order(*read_rows_and_skipped(path / "timing.jsonl"), "tokens_per_second")
    counts = (("metrics.jsonl", bad), ("timing.jsonl", bad_times))
    problems = [f"{name}: left out what can't be read: lines: {count}" for name, count in counts if count]
    starts = tuple(run.starts())
    problems += [str(note) for start in starts for note in start.get("notes") or ()]
    durations = step_times(timing, rows, config)
    evals, measurement, changed = last_measured([row for row in rows if "val_loss" in row], config, starts, path)
    problems += changed
    result = Result(
        progress=progress,
        config=config,
        train=tuple(row for row in rows if "loss" in row),
        evals=evals,
        clock=tuple(zip([step for step, _ in durations], np.cumsum([s for _, s in durations]).tolist(), strict=True)),
        device_seconds=device_seconds(durations, starts),
        gpu=any(arithmetic(start).get("device") in ("cuda", "mps") for start in starts),
        flops_per_token=cost(config, measurement.vocab_size),
        starts=starts,
        measurement=measurement,
    )
    if result.finished and not result.whole:
        problems.append("finished, but metrics.jsonl lacks the evaluation of its last step, so it has no rank")
    return replace(result, problems=tuple(problems))


def last_measured(
    rows: Sequence[Row], config: TrainConfig, starts: Sequence[Start], path: Path
) -> tuple[tuple[Row, ...], Measurement, list[str]]:
    """Return the evaluations measured on what the last one was, that measurement, and a note about the others."""
    history = read_history(config, starts, path)
    if not rows:
        return (), history[-1][1], []
    last = measured_at(history, rows[-1]["step"])
    same = [row for row in rows if agree_in_nats(measured_at(history, row["step"]), last) is not False]
    left_out = len(rows) - len(same)
    note = f"its evaluation changed: left out {left_out} earlier evaluations, which are not comparable"
    return tuple(same), last, [note] if left_out else []


def in_order(rows: list[Row], bad: int, needed: str) -> tuple[list[Row], int]:
    """Rows with what every one has, in the order of steps; the others count as bad."""
    good = [row for row in rows if needed in row]
    return sorted(good, key=lambda row: row["step"]), bad + len(rows) - len(good)


def step_times(timing: Sequence[Row], rows: Sequence[Row], config: TrainConfig) -> list[tuple[int, float]]:
    """(step, seconds of the training steps since the row before).

    Rows of steps that a restart repeats were dropped by it, and a rate is of steps alone: no step counts twice, and
    neither waiting in a queue, nor saving, nor evaluating counts at all.
    """
    tokens = {row["step"]: row["tokens"] for row in rows}
    times: list[tuple[int, float]] = []
    before, seen = 0, 0.0
    for row in timing:
        step, rate = int(row["step"]), row["tokens_per_second"]
        if step > before and rate > 0:
            now = tokens.get(step, seen + (step - before) * config.training.batch_tokens)
            times.append((step, max(0.0, now - seen) / rate))
            before, seen = step, now
    return times


def device_seconds(durations: Sequence[tuple[int, float]], starts: Sequence[Start]) -> float | None:
    """The time times the ranks of the start that each part of it belongs to."""
    total = 0.0
    for step, duration in durations:
        owners = [start for start in starts if isinstance(start.get("from_step"), int) and start["from_step"] < step]
        ranks = as_count(arithmetic(owners[-1]).get("ranks")) if owners else None
        if ranks is None:
            return None
        total += duration * ranks
    return total if durations else None


def arithmetic(start: Start) -> dict[str, Any]:
    """On what a start computed."""
    about = start.get("arithmetic")
    return about if isinstance(about, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def cost(config: TrainConfig, vocab_size: int | None) -> float | None:
    """FLOPs a token; None for a run whose vocabulary isn't known any more."""
    if config.model.vocab_size is not None:
        return flops_per_token(config.model)
    return None if vocab_size is None else flops_per_token(config.model.with_vocab(vocab_size))
