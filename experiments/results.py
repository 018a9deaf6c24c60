"""Results of runs: config, losses, time and cost, read once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.missing_points import find_never_started
from launch.status import RunStatus, read_run
from nanogpt.comparability import agree_in_nats
from nanogpt.config import Against, CostConfig, Metric, TrainConfig
from nanogpt.cost import Cost, choose_prices, read_cost
from nanogpt.errors import LabError, one_line
from nanogpt.estimates.flops import flops_per_token
from nanogpt.loss_check import LossProblem, find_loss_problem
from nanogpt.measurement import Measurement, measured_at, read_history, requested_measurement
from nanogpt.metrics_file import Row, as_count, read_rows_and_skipped
from nanogpt.run_directory import RunDirectory
from nanogpt.schema import signature

Start = dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """Result of one run, or of a point that hasn't started."""

    status: RunStatus
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
    cost: Cost = field(default_factory=Cost)
    """Cost of all its starts."""
    problems: tuple[str, ...] = ()
    """Messages about files of the run that can't be read."""
    measurement: Measurement = field(default_factory=Measurement)
    """Data and tokenizer of its last evaluation; `evals` has only rows measured on the same."""

    @property
    def path(self) -> Path:
        return self.status.path

    @property
    def finished(self) -> bool:
        return self.status.state == "finished"

    @property
    def complete(self) -> bool:
        """Return whether it is finished and has the evaluation of its last step; otherwise it has no result."""
        return self.finished and self.last is not None and self.last["step"] >= (self.status.steps or 0)

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
    def trouble(self) -> LossProblem | None:
        if not self.finished or self.last is None:
            return None
        best = min(row["val_loss"] for row in self.evals)
        return find_loss_problem(self.last["val_loss"], best, self.measurement.vocab_size, self.last.get("train_loss"))

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
        """Return the number of epochs; None for a run whose rows don't have it."""
        found = [rows[-1]["epoch"] for rows in (self.train, self.evals) if rows and "epoch" in rows[-1]]
        return max(found, default=None)

    @property
    def tokens_per_second(self) -> float | None:
        if not self.seconds:
            return None
        return self.tokens_at(self.clock[-1][0]) / self.seconds

    def tokens_at(self, step: float) -> float:
        return step * self.config.training.batch_tokens if not self.tokens else self.tokens * step / max(1, self.step)

    def x_values(self, rows: Sequence[Row], x: Against) -> list[float] | None:
        """Return the position of rows on an axis; None if unknown."""
        if x == "steps":
            return [row["step"] for row in rows]
        if x == "tokens":
            return [row["tokens"] for row in rows]
        if x == "flops":
            return None if self.flops_per_token is None else [row["tokens"] * self.flops_per_token for row in rows]
        if not self.clock:
            return None
        steps, seconds = zip((0, 0.0), *self.clock, strict=True)
        return [float(value) for value in np.interp([row["step"] for row in rows], steps, seconds)]


def read_results(statuses: Sequence[RunStatus], prices: CostConfig | None = None) -> tuple[list[RunResult], list[str]]:
    """Return the results, and messages about runs that can't be read. Costs are by `prices`, or by those in the config
    of each run.
    """
    results: list[RunResult] = []
    problems: list[str] = []
    for status in statuses:
        try:
            results.append(read_result(status, prices))
        except LabError as error:
            problems.append(f"{one_line(status.path)}: left out: {one_line(error, 300)}")
        except OSError as error:
            file = Path(error.filename or status.path)
            problems.append(f"{one_line(status.path)}: left out: {one_line(file)} can't be read: {error.strerror}")
    return results, problems


def find_missing_points(results: Sequence[RunResult], folders: Sequence[Path]) -> list[RunResult]:
    """Return the points in `folders` that a sweep's command asked for and that never started."""
    parents = [folder.resolve() for folder in folders]
    whole = [result for result in results if any(map(result.path.resolve().parent.is_relative_to, parents))]
    there = {signature(result.config) for result in whole}
    never = find_never_started([(result.path, result.config, result.starts) for result in whole], there)
    why = "never started"
    return [
        RunResult(
            replace(read_run(path), state="missing", why=why),
            config,
            measurement=requested_measurement(config),
        )
        for path, config in never
    ]


def read_result(status: RunStatus, prices: CostConfig | None = None) -> RunResult:
    """Return the result of a run. Raises BadCheckpoint, OSError if its config can't be read; other damage is noted."""
    path, run = status.path, RunDirectory(status.path)
    if not (path / "config.json").exists() and status.submission:
        config = status.submission.config(status.index)
        return RunResult(status, config, measurement=requested_measurement(config))
    config = run.read_config()
    rows, bad = sort_rows(*read_rows_and_skipped(path / "metrics.jsonl"), "tokens")
    timing, bad_times = sort_rows(*read_rows_and_skipped(path / "timing.jsonl"), "tokens_per_second")
    counts = (("metrics.jsonl", bad), ("timing.jsonl", bad_times))
    problems = [f"{name}: left out what can't be read: lines: {count}" for name, count in counts if count]
    starts = tuple(run.read_starts())
    problems += [str(note) for start in starts for note in start.get("notes") or ()]
    durations = step_times(timing, rows, config)
    evals, measurement, changed = comparable_evals([row for row in rows if "val_loss" in row], config, starts, path)
    problems += changed
    result = RunResult(
        status=status,
        config=config,
        train=tuple(row for row in rows if "loss" in row),
        evals=evals,
        clock=tuple(zip([step for step, _ in durations], np.cumsum([s for _, s in durations]).tolist(), strict=True)),
        device_seconds=device_seconds(durations, starts),
        gpu=any(read_arithmetic(start).get("device") in ("cuda", "mps") for start in starts),
        flops_per_token=compute_flops_per_token(config, measurement.vocab_size),
        starts=starts,
        cost=read_cost(run.read_status(), starts, timing, choose_prices(prices, config)),
        measurement=measurement,
    )
    if result.finished and not result.complete:
        problems.append("finished, but metrics.jsonl lacks the evaluation of its last step, so it has no rank")
    return replace(result, problems=tuple(problems))


def comparable_evals(
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


def sort_rows(rows: list[Row], bad: int, needed: str) -> tuple[list[Row], int]:
    good = [row for row in rows if needed in row]
    return sorted(good, key=lambda row: row["step"]), bad + len(rows) - len(good)


def step_times(timing: Sequence[Row], rows: Sequence[Row], config: TrainConfig) -> list[tuple[int, float]]:
    """Return (step, seconds of training steps since the row before).

    Rows of steps that a restart repeats were dropped by it, and rates cover steps alone: no step counts twice, and
    queueing, saving and evaluating don't count.
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
    """Return seconds times the ranks of the start that each part belongs to."""
    total = 0.0
    for step, duration in durations:
        owners = [start for start in starts if isinstance(start.get("from_step"), int) and start["from_step"] < step]
        ranks = as_count(read_arithmetic(owners[-1]).get("ranks")) if owners else None
        if ranks is None:
            return None
        total += duration * ranks
    return total if durations else None


def read_arithmetic(start: Start) -> dict[str, Any]:
    """Return device, precision and ranks that a start recorded."""
    about = start.get("arithmetic")
    return about if isinstance(about, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def compute_flops_per_token(config: TrainConfig, vocab_size: int | None) -> float | None:
    """Return FLOPs per token; None if the vocabulary size isn't known any more."""
    if config.model.vocab_size is not None:
        return flops_per_token(config.model)
    return None if vocab_size is None else flops_per_token(config.model.with_vocab(vocab_size))
