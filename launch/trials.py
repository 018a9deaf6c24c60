"""The trials of a search: what was asked for, on disk before it is trained, and what came of it.

<study>/trials.jsonl   one line a trial: its number, the values that were chosen, the digits that end its runs' names

What came of a trial is not written there: its runs say it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cli.search_space import Space
from launch.preview import goal_value, states
from launch.study import Member, Study, digits_of, members_of
from nanogpt.config import Metric, TrainConfig
from nanogpt.errors import BadCheckpoint, BadInput, one_line
from nanogpt.files import append, from_json, read_bytes, read_text, write_atomic
from nanogpt.run_state import FAILED

State = Literal["open", "finished", "failed", "diverged", "invalid", "excluded"]


@dataclass
class Trial:
    """One choice of values, with a run for each seed."""

    number: int
    texts: dict[str, str]
    """Its values by key, as one would type them."""
    members: list[Member] = field(default_factory=list[Member])
    """None for one that is invalid or excluded."""
    state: State = "open"
    val: float | None = None
    """Mean of the metric over the seeds."""
    why: str = ""

    @property
    def words(self) -> str:
        """`optimizer.lr=0.001 model.dropout=0.1`."""
        return " ".join(f"{key}={text}" for key, text in self.texts.items())

    @property
    def digits(self) -> list[str]:
        """What ends the names of its runs."""
        return [digits_of(member.config) for member in self.members]


def trial(path: Path, space: Space[TrainConfig], number: int, texts: dict[str, str]) -> Trial:
    """A choice as a trial of the study in a folder; one that can't be is a trial too, and says why."""
    try:
        points = space.points(texts)
    except BadInput as error:
        return Trial(number, texts, state="invalid", why=str(error))
    if not points:
        return Trial(number, texts, state="excluded", why="left out by sweep.exclude")
    return Trial(number, texts, members_of(path, points))


class Record:
    """The file of a search."""

    def __init__(self, path: Path) -> None:
        self.study, self.path = path, path / "trials.jsonl"
        self.count = 0
        """Trials in it, those of other searches too."""

    def trials(self, space: Space[TrainConfig]) -> list[Trial]:
        """Those of this search: on its axes, and still the same runs. Raises BadCheckpoint."""
        lines = self.whole().splitlines()
        self.count = len(lines)
        found: list[Trial] = []
        for number, line in enumerate(lines, 1):
            try:
                texts, digits = read(from_json(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                why = "isn't a trial; without this file the search begins anew, and its runs are still there"
                raise BadCheckpoint(f"{one_line(self.path)}: line {number} {why}") from None
            if on_axes(space, texts):
                one = trial(self.study, space, number, texts)
                found += [one] if {*one.digits} & {*digits} or not (one.digits or digits) else []
        return found

    def mend(self) -> None:
        """Drop a last line that a crash cut short: it was never trained. Raises OSError."""
        if self.path.exists() and not read_bytes(self.path).endswith(b"\n"):
            write_atomic(self.path, self.whole())

    def whole(self) -> str:
        """Its text up to the last line that is whole."""
        text = read_text(self.path, "replace") if self.path.exists() else ""
        return text[: text.rfind("\n") + 1]

    def add(self, trials: Sequence[Trial]) -> None:
        """Note what is about to be trained, all of it or nothing. Raises OSError."""
        lines = [json.dumps({"trial": one.number, "values": one.texts, "runs": one.digits}) for one in trials]
        append(self.path, "\n".join(lines))
        self.count += len(trials)


def read(line: Any) -> tuple[dict[str, str], list[str]]:
    """(values, digits) of a line. Raises ValueError, TypeError, KeyError, AttributeError for one that isn't a trial."""
    texts = {str(key): str(text) for key, text in line["values"].items()}
    return texts, [str(digits) for digits in line["runs"]]


def on_axes(space: Space[TrainConfig], texts: dict[str, str]) -> bool:
    """Whether a search in this space could have chosen these values."""
    try:
        for axis in space.axes:
            axis.value(texts[axis.key])
    except (KeyError, ValueError):
        return False
    return len(texts) == len(space.axes)


def study_of_trials(path: Path, trials: Sequence[Trial]) -> Study:
    """Their runs, each once, however often it was chosen."""
    return Study(path, list({member.run: member for one in trials for member in one.members}.values()))


def judge(path: Path, trials: Sequence[Trial], metric: Metric) -> None:
    """Give every trial that has runs what they came to; it stays open until all of them have ended."""
    now = states(study_of_trials(path, trials))
    for one in trials:
        points = [now[member.run] for member in one.members]
        if not points or any(point.state not in ("finished", *FAILED) for point in points):
            one.why = ", ".join(f"{point.run.name} {point.state}" for point in points) or one.why
            continue
        losses = [loss for member in one.members if (loss := goal_value(member, metric)) is not None]
        if bad := next((point for point in points if point.state in FAILED), None):
            one.state, one.why = "diverged" if bad.state == "diverged" else "failed", bad.why
        elif len(losses) < len(points):
            one.state, one.why = "failed", "has no validation loss"
        else:
            one.state, one.why, one.val = "finished", "", sum(losses) / len(losses)
