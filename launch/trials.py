"""The trials of a search, written to disk before they are trained.

<study>/trials.jsonl   one line per trial: number, chosen values, signatures that end the names of its runs

Results are not written there; they are read from the runs.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cli.search_space import Space
from launch.preview import metric_at_goal, read_states
from launch.study import PlannedRun, Study, plan_runs, short_signature
from nanogpt.config import Metric, TrainConfig
from nanogpt.errors import BadCheckpoint, BadInput, one_line
from nanogpt.files import append_line, from_json, read_bytes, read_text, write_atomic
from nanogpt.run_state import FAILED

TrialState = Literal["open", "paused", "finished", "failed", "diverged", "invalid", "excluded"]


@dataclass
class Trial:
    """One choice of values, with a run for each seed."""

    number: int
    texts: dict[str, str]
    """Values by key, as on the command line."""
    runs: list[PlannedRun] = field(default_factory=list[PlannedRun])
    """Empty for an invalid or excluded trial."""
    state: TrialState = "open"
    val: float | None = None
    """Mean of the metric over the seeds."""
    by_rung: dict[int, float] = field(default_factory=dict[int, float])
    """Means at the rungs that it passed."""
    why: str = ""

    @property
    def settings(self) -> str:
        return " ".join(f"{key}={text}" for key, text in self.texts.items())

    @property
    def signatures(self) -> list[str]:
        return [short_signature(planned.config) for planned in self.runs]


def make_trial(path: Path, space: Space[TrainConfig], number: int, texts: dict[str, str]) -> Trial:
    """Return a choice of values as a trial in the study's folder `path`."""
    try:
        points = space.points(texts)
    except BadInput as error:
        return Trial(number, texts, state="invalid", why=str(error))
    if not points:
        return Trial(number, texts, state="excluded", why="excluded by sweep.exclude")
    return Trial(number, texts, plan_runs(path, points))


class TrialLog:
    """The trials.jsonl of a search."""

    def __init__(self, path: Path) -> None:
        self.study, self.path = path, path / "trials.jsonl"
        self.count = 0
        """Number of lines, including trials of other search spaces."""

    def read_trials(self, space: Space[TrainConfig]) -> list[Trial]:
        """Return the trials that are in `space` and have the same runs today. Raises BadCheckpoint."""
        lines = self.read_complete_lines().splitlines()
        self.count = len(lines)
        found: list[Trial] = []
        for number, line in enumerate(lines, 1):
            try:
                texts, digits = parse_line(from_json(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                why = "is not a trial; without this file the search starts anew and reuses finished runs"
                raise BadCheckpoint(f"{one_line(self.path)}: line {number} {why}") from None
            if is_in_space(space, texts):
                trial = make_trial(self.study, space, number, texts)
                found += [trial] if {*trial.signatures} & {*digits} or not (trial.signatures or digits) else []
        return found

    def drop_torn_line(self) -> None:
        """Remove an incomplete last line: its trial was never trained. Raises OSError."""
        if self.path.exists() and not read_bytes(self.path).endswith(b"\n"):
            write_atomic(self.path, self.read_complete_lines())

    def read_complete_lines(self) -> str:
        text = read_text(self.path, "replace") if self.path.exists() else ""
        return text[: text.rfind("\n") + 1]

    def add(self, trials: Sequence[Trial]) -> None:
        """Append trials that are about to be trained, all or none. Raises OSError."""
        lines = [
            json.dumps({"trial": trial.number, "values": trial.texts, "runs": trial.signatures}) for trial in trials
        ]
        append_line(self.path, "\n".join(lines))
        self.count += len(trials)


def parse_line(line: Any) -> tuple[dict[str, str], list[str]]:
    """Return values and signatures of a line. Raises ValueError, TypeError, KeyError or AttributeError."""
    texts = {str(key): str(text) for key, text in line["values"].items()}
    return texts, [str(digits) for digits in line["runs"]]


def is_in_space(space: Space[TrainConfig], texts: dict[str, str]) -> bool:
    """Return whether a search in this space could have chosen these values."""
    try:
        for axis in space.axes:
            axis.value(texts[axis.key])
    except (KeyError, ValueError):
        return False
    return len(texts) == len(space.axes)


def study_of_trials(path: Path, trials: Sequence[Trial]) -> Study:
    return Study(path, list({planned.path: planned for trial in trials for planned in trial.runs}.values()))


def update_trials(path: Path, trials: Sequence[Trial], metric: Metric) -> None:
    """Set the result of every trial whose runs have all ended; the others stay open."""
    states = read_states(study_of_trials(path, trials))
    for trial in trials:
        points = [states[planned.path] for planned in trial.runs]
        if not points or any(point.state not in ("finished", *FAILED) for point in points):
            trial.why = ", ".join(f"{point.path.name} {point.state}" for point in points) or trial.why
            continue
        losses = [loss for planned in trial.runs if (loss := metric_at_goal(planned, metric)) is not None]
        if bad := next((point for point in points if point.state in FAILED), None):
            trial.state, trial.why = "diverged" if bad.state == "diverged" else "failed", bad.why
        elif len(losses) < len(points):
            trial.state, trial.why = "failed", "has no validation loss"
        else:
            trial.state, trial.why, trial.val = "finished", "", sum(losses) / len(losses)
