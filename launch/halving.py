"""Successive halving (Jamieson & Talwalkar 2016), synchronous: rungs of a study, each a larger share of fewer points.

A point's learning rates are those of its whole run from the start, so what a rung compares is what a run in one go
would show there. The losses that decided are noted in the study's folder, so the same command decides the same again.
"""

import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.sweep_config import Halving
from launch.metric_choice import UNITS, check_comparable, choose_metric
from launch.preview import goal_step, goal_value, states
from launch.study import Member, Study
from nanogpt.config import Metric
from nanogpt.console import format_table, say
from nanogpt.errors import STOPPED, BadInput, one_line
from nanogpt.files import append, from_json, read_text
from nanogpt.run_directory import newest_step
from nanogpt.run_state import FAILED
from nanogpt.schema import signature

FILE = "rungs.jsonl"  # in the study's folder: the losses that decided


@dataclass
class Candidate:
    """A setting with all its seeds."""

    members: list[Member] = field(default_factory=list[Member])
    val: float = math.inf
    """Mean of the metric over the seeds; infinite when one of them failed."""

    @property
    def name(self) -> str:
        """Of the run, or of what its seeds have in common."""
        name = self.members[0].run.name
        if len(self.members) > 1:
            name = re.sub(r"-?\bseed\d+", "", name).rpartition("-")[0].strip("-")
        return one_line(name or "base", 60)


def halve(study: Study, sweeper: Halving, run: Callable[[Study], int]) -> int:
    """Train all points a little way, the best of them further. Returns 0 when one got to its end.

    `run` trains or submits points and waits for them. Raises BadInput.
    """
    config = study.members[0].config
    if config.new_attempt or config.stop_at_fraction is not None:
        what = "new_attempt=true" if config.new_attempt else f"stop_at_fraction={config.stop_at_fraction}"
        raise BadInput(f"{what}: hydra/sweeper=halving decides how far runs go on; leave it out")
    metric = choose_metric([member.config for member in study.members], sweeper.metric, "hydra/sweeper=halving")
    left = candidates(study.members)
    say_plan(left, sweeper)
    for rung in range(sweeper.rungs):
        share = sweeper.eta ** (rung + 1 - sweeper.rungs)
        last = rung == sweeper.rungs - 1
        left = [Candidate([paused(member, None if last else share) for member in one.members]) for one in left]
        part = Study(study.path, [member for one in left for member in one.members])
        refuse_past(part, metric)
        say(f"=== rung {rung + 1} of {sweeper.rungs}: {len(part.members)} points to {100 * share:.3g} % of their steps")
        code = run(part)
        if code == STOPPED or code >= 128 or config.dry_run:
            return code
        if missing := judge(part, left, metric):
            say(f"rung {rung + 1} isn't complete: {missing}; the same command goes on")
            return code or 1
        left.sort(key=lambda one: one.val)
        keep = 1 if last else math.ceil(len(left) / sweeper.eta)
        say(standing(left, keep, "best" if last else "goes on", f"rung {rung + 1}", UNITS[metric]))
        left = [one for one in left[:keep] if one.val < math.inf]
        if not left:
            return code or 1
    runs = ", ".join(one_line(member.run) for member in left[0].members)
    say(f"best    {left[0].name}, {UNITS[metric]} {left[0].val:.4f}: {runs}")
    return 0


def candidates(members: list[Member]) -> list[Candidate]:
    """Points that differ in their seed alone are compared with others by their mean."""
    found: dict[str, Candidate] = {}
    for member in members:
        training = member.config.training.model_copy(update={"seed": 0})
        setting = signature(member.config.model_copy(update={"training": training}))
        found.setdefault(setting, Candidate()).members.append(member)
    return list(found.values())


def paused(member: Member, share: float | None) -> Member:
    """The point with the share of its steps that a rung trains."""
    return Member(member.run, member.config.model_copy(update={"stop_at_fraction": share}))


def judge(part: Study, left: list[Candidate], metric: Metric) -> str:
    """Give every candidate its value, and note it. Returns what is missing to do so, in words.

    Raises BadInput for values that were not measured on the same.
    """
    noted, now = decided(part.path, metric), states(part)
    check_comparable(part.members, metric)
    found: dict[str, float] = {}
    missing: list[str] = []
    for one in left:
        losses: list[float] = []
        for member in one.members:
            point = now[member.run]
            loss = noted.get(name_of(member), goal_value(member, metric))
            if loss is not None:
                found[name_of(member)] = loss
            elif point.state not in FAILED:
                missing.append(f"{one_line(member.run.name)} {point.state}")
            losses.append(math.inf if loss is None else loss)
        one.val = sum(losses) / len(losses)
    if not missing:
        for name, loss in found.items():
            if name not in noted:
                row: dict[str, Any] = {"at": name, "val": loss}
                append(part.path / FILE, json.dumps(row if metric == "val_loss" else row | {"metric": metric}))
    return ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")


def name_of(member: Member) -> str:
    """A point and the share of its steps, as rungs.jsonl has them."""
    return f"{member.run.name} {member.config.stop_at_fraction or 1.0!r}"


def decided(study: Path, metric: Metric) -> dict[str, float]:
    """The values that rungs were decided by. They stay what they were, whatever becomes of runs and their rows."""
    losses: dict[str, float] = {}
    path = study / FILE
    for line in read_text(path, "replace").splitlines() if path.exists() else []:
        with suppress(ValueError, TypeError, KeyError):  # a line that a crash has torn
            row = from_json(line)
            if row.get("metric", "val_loss") == metric:
                losses[str(row["at"])] = float(row["val"])
    return losses


def refuse_past(part: Study, metric: Metric) -> None:
    """A point that is past its rung's step already and wasn't evaluated there can't be compared. Raises BadInput."""
    noted = decided(part.path, metric)
    for member in part.members:
        goal = goal_step(member)
        if goal is None or name_of(member) in noted or goal_value(member, metric) is not None:
            continue
        if newest_step(member.run) > goal:
            where = f"{one_line(member.run)} is past step {goal}, where this rung compares"
            raise BadInput(f"hydra/sweeper=halving: {where}, and wasn't evaluated there; another name= begins anew")


def standing(left: list[Candidate], keep: int, word: str, title: str, unit: str) -> str:
    """The table of a rung, best first."""
    rows = [
        (
            one.name,
            str(len(one.members)),
            f"{one.val:.4f}" if one.val < math.inf else "failed",
            word if place < keep and one.val < math.inf else "",
        )
        for place, one in enumerate(left)
    ]
    return format_table(title, ("setting", "seeds", unit, ""), rows)


def say_plan(left: list[Candidate], sweeper: Halving) -> None:
    """How many points each rung trains how far, and what that is of the whole grid."""
    counts, shares = [len(left)], [sweeper.eta ** (rung + 1 - sweeper.rungs) for rung in range(sweeper.rungs)]
    for _ in shares[1:]:
        counts.append(math.ceil(counts[-1] / sweeper.eta))
    new = [share - before for share, before in zip(shares, [0, *shares], strict=False)]
    work = sum(count * share for count, share in zip(counts, new, strict=True)) / len(left)
    rungs = ", ".join(f"{count} to {100 * share:.3g} %" for count, share in zip(counts, shares, strict=True))
    say(f"halving {rungs} of their steps: {100 * work:.0f} % of the work of all points")
