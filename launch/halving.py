"""Synchronous successive halving (Jamieson & Talwalkar 2016): each rung trains fewer points for longer.

The learning-rate schedule of a point covers its whole run from the start, so a rung compares the same losses that an
uninterrupted run has there. They are stored in the study's folder, so the same command decides the same again.
"""

import json
import logging
import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.sweep_config import Halving
from launch.metric_choice import UNITS, check_comparable, choose_metric
from launch.preview import goal_step, metric_at_goal, read_states
from launch.promotion import Rules
from launch.study import PlannedRun, Study
from nanogpt.config import Metric, TrainConfig
from nanogpt.console import print_text
from nanogpt.errors import STOPPED, BadInput, one_line
from nanogpt.files import append_line, from_json, read_text
from nanogpt.formatting import format_table
from nanogpt.run_directory import newest_step
from nanogpt.run_state import FAILED
from nanogpt.schema import signature

logger = logging.getLogger(__name__)

FILE = "rungs.jsonl"  # in the study's folder: the losses that decided


@dataclass
class Candidate:
    """Runs that differ in their seed alone."""

    runs: list[PlannedRun] = field(default_factory=list[PlannedRun])
    val: float = math.inf
    """Mean of the metric over the seeds; infinite if one of them failed."""

    @property
    def name(self) -> str:
        """Return the name of the run, or what the names of its seeds have in common."""
        name = self.runs[0].path.name
        if len(self.runs) > 1:
            name = re.sub(r"-?\bseed\d+", "", name).rpartition("-")[0].strip("-")
        return one_line(name or "base", 60)


def halve(study: Study, sweeper: Halving, run: Callable[[Study], int]) -> int:
    """Train all candidates to the first rung and the best of each rung to the next. Return 0 if one finished.

    `run` trains or submits the runs of a study and waits for them. Raises BadInput.
    """
    config = study.runs[0].config
    check_decides_length(config, "hydra/sweeper=halving")
    metric = choose_metric([planned.config for planned in study.runs], sweeper.metric, "hydra/sweeper=halving")
    left = group_candidates(study.runs)
    rules = Rules(len(left), sweeper.rungs, sweeper.eta)
    logger.info(f"halving {describe_plan(rules)}")
    for rung in range(sweeper.rungs):
        share, last = rules.share(rung), rung == sweeper.rungs - 1
        for candidate in left:
            candidate.runs = [with_stop_fraction(planned, rules, rung) for planned in candidate.runs]
        part = Study(study.path, [planned for candidate in left for planned in candidate.runs])
        check_not_past_rung(part, metric, "halving")
        logger.info(
            f"=== rung {rung + 1} of {sweeper.rungs}: {len(part.runs)} points to {100 * share:.3g} % of their steps"
        )
        code = run(part)
        if code == STOPPED or code >= 128 or config.dry_run:
            return code
        if missing := score_candidates(part, left, metric):
            logger.info(f"rung {rung + 1} is incomplete: {missing}; the same command continues")
            return code or 1
        left.sort(key=lambda candidate: candidate.val)
        keep = 1 if last else rules.count_kept(len(left))
        print_text(rung_table(left, keep, "best" if last else "promoted", f"rung {rung + 1}", UNITS[metric]))
        left = [candidate for candidate in left[:keep] if candidate.val < math.inf]
        if not left:
            return code or 1
    runs = ", ".join(one_line(planned.path) for planned in left[0].runs)
    print_text(f"best    {left[0].name}, {UNITS[metric]} {left[0].val:.4f}: {runs}")
    return 0


def check_decides_length(
    config: TrainConfig, name: str, rule: str = "which decides how far each run is trained"
) -> None:
    """Raise BadInput for settings that contradict the rule of the sweeper with this name."""
    if config.new_attempt or config.stop_at_fraction is not None:
        what = "new_attempt=true" if config.new_attempt else f"stop_at_fraction={config.stop_at_fraction}"
        raise BadInput(f"{what}: not with {name}, {rule}")


def group_candidates(runs: list[PlannedRun]) -> list[Candidate]:
    found: dict[str, Candidate] = {}
    for planned in runs:
        training = planned.config.training.model_copy(update={"seed": 0})
        setting = signature(planned.config.model_copy(update={"training": training}))
        found.setdefault(setting, Candidate()).runs.append(planned)
    return list(found.values())


def with_stop_fraction(planned: PlannedRun, rules: Rules, rung: int) -> PlannedRun:
    share = None if rung >= rules.rungs - 1 else rules.share(rung)
    return PlannedRun(planned.path, planned.config.model_copy(update={"stop_at_fraction": share}))


def score_candidates(part: Study, left: list[Candidate], metric: Metric) -> str:
    """Set and store the value of every candidate. Return the runs whose value is missing, as text.

    Raises BadInput if values were measured on different data.
    """
    stored, states = read_decisions(part.path, metric), read_states(part)
    check_comparable(part.runs, metric)
    found: dict[str, float] = {}
    missing: list[str] = []
    for candidate in left:
        losses: list[float] = []
        for planned in candidate.runs:
            point = states[planned.path]
            loss = stored.get(rung_key(planned), metric_at_goal(planned, metric))
            if loss is not None:
                found[rung_key(planned)] = loss
            elif point.state not in FAILED:
                missing.append(f"{one_line(planned.path.name)} {point.state}")
            losses.append(math.inf if loss is None else loss)
        candidate.val = sum(losses) / len(losses)
    if not missing:
        for name, loss in found.items():
            if name not in stored:
                row: dict[str, Any] = {"at": name, "val": loss}
                append_line(part.path / FILE, json.dumps(row if metric == "val_loss" else row | {"metric": metric}))
    return ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")


def rung_key(planned: PlannedRun) -> str:
    """Return the key of a run and its fraction of steps in rungs.jsonl."""
    return f"{planned.path.name} {planned.config.stop_at_fraction or 1.0!r}"


def read_decisions(study: Path, metric: Metric) -> dict[str, float]:
    """Return the values that decided earlier rungs. They stay fixed even if the runs change afterwards."""
    losses: dict[str, float] = {}
    path = study / FILE
    for line in read_text(path, "replace").splitlines() if path.exists() else []:
        with suppress(ValueError, TypeError, KeyError):  # torn by a crash
            row = from_json(line)
            if row.get("metric", "val_loss") == metric:
                losses[str(row["at"])] = float(row["val"])
    return losses


def check_not_past_rung(part: Study, metric: Metric, sweeper: str) -> None:
    """Raise BadInput if a run is past its rung's step but was not evaluated there: it can't be compared."""
    stored = read_decisions(part.path, metric)
    for planned in part.runs:
        goal = goal_step(planned)
        if goal is None or rung_key(planned) in stored or metric_at_goal(planned, metric) is not None:
            continue
        if newest_step(planned.path) > goal:
            past = f"{one_line(planned.path)} is past step {goal}, where this rung compares"
            raise BadInput(
                f"hydra/sweeper={sweeper}: {past}, and wasn't evaluated there; start anew with another name="
            )


def rung_table(left: list[Candidate], keep: int, word: str, title: str, unit: str) -> str:
    rows = [
        (
            candidate.name,
            str(len(candidate.runs)),
            f"{candidate.val:.4f}" if candidate.val < math.inf else "failed",
            word if rank < keep and candidate.val < math.inf else "",
        )
        for rank, candidate in enumerate(left)
    ]
    return format_table(title, ("setting", "seeds", unit, ""), rows)


def describe_plan(rules: Rules) -> str:
    """Return the points and steps of each rung, and the share of the whole grid's work, as text."""
    counts, shares = [rules.points], [rules.share(rung) for rung in range(rules.rungs)]
    for _ in shares[1:]:
        counts.append(rules.count_kept(counts[-1]))
    new = [share - before for share, before in zip(shares, [0, *shares], strict=False)]
    work = sum(count * share for count, share in zip(counts, new, strict=True)) + counts[-1] * (rules.seeds - 1)
    rungs = ", ".join(f"{count} to {100 * share:.3g} %" for count, share in zip(counts, shares, strict=True))
    seeds = f", with {rules.seeds} seeds" if rules.seeds > 1 else ""
    return f"{rungs} of their steps{seeds}: {100 * work / rules.points:.0f} % of the work of all points"
