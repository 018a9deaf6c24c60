"""The record of an asynchronous search.

<study>/rungs.jsonl   a line for every start and every result at a rung, in the order in which they came

A further seed of a point that was trained to the end is a stage like a rung; its result is the mean of its seeds.
Results are stored as by synchronous halving, so that either can continue the other.
"""

import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.halving import FILE, Candidate, rung_key, with_stop_fraction
from launch.metric_choice import UNITS
from launch.promotion import Rules, Standings
from launch.study import PlannedRun, plan_named_runs
from nanogpt.config import Metric
from nanogpt.errors import one_line
from nanogpt.files import append_line, from_json, read_text, write_atomic
from nanogpt.formatting import format_table

MAX_ROWS = 40  # of the table


@dataclass(frozen=True)
class Part:
    """A run up to a rung, or with a further seed to its end."""

    point: int
    rung: int
    planned: PlannedRun

    @property
    def key(self) -> str:
        return rung_key(self.planned)

    def describe(self, rules: Rules) -> str:
        return f"{one_line(self.planned.path.name, 60)} to {100 * rules.share(self.rung):.3g} % of its steps"


@dataclass
class RungRecord:
    """Starts and results of all points, on disk and as the standings that decide."""

    path: Path
    rules: Rules
    metric: Metric
    candidates: list[Candidate]
    """The points, in order. Those that can't be trained have no runs."""
    values: dict[str, float] = field(default_factory=dict[str, float])
    """Results of runs at rungs; infinite if they failed."""
    failures: dict[int, str] = field(default_factory=dict[int, str])
    """Failed or diverged, by point."""
    further: dict[tuple[int, int], PlannedRun] = field(default_factory=dict[tuple[int, int], PlannedRun])
    """Runs with further seeds, by point and stage."""

    def __post_init__(self) -> None:
        self.now = Standings([{} for _ in range(self.rules.stages)])

    def parts(self, point: int, rung: int) -> list[Part]:
        """Return the runs of a point, one per seed, up to a rung; or its run with a further seed."""
        runs = self.candidates[point].runs
        if runs and rung >= self.rules.rungs:
            if (point, rung) not in self.further:
                self.further[point, rung] = self.plan_further_seed(runs[0], rung - self.rules.rungs + 1)
            runs = [self.further[point, rung]]
        return [Part(point, rung, with_stop_fraction(planned, self.rules, rung)) for planned in runs]

    def parts_of_result(self, point: int, rung: int) -> list[Part]:
        """Return the runs whose mean is the result of a point at a rung, or with a further seed."""
        stages = range(min(rung, self.rules.rungs - 1), rung + 1)
        return [part for stage in stages for part in self.parts(point, stage)]

    def plan_further_seed(self, first: PlannedRun, number: int) -> PlannedRun:
        """Return the run of a point with a seed that is higher than that of its first run by `number`."""
        training = first.config.training.model_copy(update={"seed": first.config.training.seed + number})
        name = f"{first.config.name}-seed{training.seed}"
        return plan_named_runs(self.path, [(first.config.model_copy(update={"training": training}), name)])[0]

    def all_parts(self, point: int) -> list[Part]:
        return [part for rung in range(self.rules.stages) for part in self.parts(point, rung)]

    def read(self, retry: bool) -> list[Part]:
        """Read the file. Return the runs that were started and have no result; with `retry` also those that failed."""
        path = self.path / FILE
        text = read_text(path, "replace") if path.exists() else ""
        if text and not text.endswith("\n"):  # torn by a crash
            write_atomic(path, text := text[: text.rfind("\n") + 1])
        parts = {part.key: part for point in range(len(self.candidates)) for part in self.all_parts(point)}
        for line in text.splitlines():
            with suppress(ValueError, TypeError, KeyError):  # damaged, or of another search
                self.read_row(from_json(line), parts, retry)
        return [part for point in list(self.now.reached) for part in self.score_all(point)]

    def read_row(self, row: dict[str, Any], parts: dict[str, Part], retry: bool) -> None:
        part = parts[row["start"] if "start" in row else row["at"]]
        if "at" in row and row.get("metric", "val_loss") != self.metric:
            return
        self.now.reached[part.point] = max(part.rung, self.now.reached.get(part.point, 0))
        if "at" in row and row["val"] is not None:
            self.values[part.key] = float(row["val"])
        elif "at" in row and not retry:
            self.values[part.key], self.failures[part.point] = math.inf, str(row["state"])

    def score(self, point: int, rung: int) -> list[Part]:
        """Enter the result of a point at a rung if all its seeds have theirs. Return those that have not."""
        parts = self.parts_of_result(point, rung)
        left = [part for part in parts if part.key not in self.values]
        if not left:
            values = [self.values[part.key] for part in parts] or [math.inf]
            self.now.results[rung][point] = sum(values) / len(values)
        return left

    def score_all(self, point: int) -> list[Part]:
        """Enter all results of a point. Return its runs that have none at the last rung to which it was started."""
        return [self.score(point, rung) for rung in range(self.now.reached[point] + 1)][-1]

    def add_start(self, point: int, rung: int) -> list[Part]:
        """Store that a point is started to a rung. Return its runs that have no result there yet."""
        if rows := [json.dumps({"start": part.key}) for part in self.parts(point, rung)]:
            append_line(self.path / FILE, "\n".join(rows))
        self.now.reached[point] = rung
        return self.score(point, rung)

    def add_result(self, part: Part, value: float | None, state: str) -> None:
        """Store a run's metric at its rung, None if it failed there, as `state` says."""
        row: dict[str, Any] = {"at": part.key, "val": value}
        if value is None:
            row["state"] = self.failures[part.point] = state
        append_line(self.path / FILE, json.dumps(row if self.metric == "val_loss" else row | {"metric": self.metric}))
        self.values[part.key] = math.inf if value is None else value
        self.score(part.point, part.rung)

    def table(self) -> str:
        """Return a table of the points, those that were trained furthest first and the best of these first."""
        furthest: dict[int, int] = {}
        for rung in reversed(range(self.rules.stages)):
            furthest |= {point: rung for point in self.now.rank(rung) if point not in furthest}
        rows = [
            (
                self.candidates[point].name,
                str(len(self.candidates[point].runs) + max(0, rung - self.rules.rungs + 1)),
                f"{100 * self.rules.share(rung):.3g} %",
                f"{self.now.results[rung][point]:.4f}",
                self.failures.get(point, ""),
            )
            for point, rung in list(furthest.items())[:MAX_ROWS]
        ]
        title = f"{one_line(self.path)}: {len(self.now.reached)} of {self.rules.points} points"
        title += f", {len(self.failures)} failed" if self.failures else ""
        return format_table(title, ("setting", "seeds", "steps", UNITS[self.metric], ""), rows)
