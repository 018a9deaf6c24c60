"""Add seeds to the settings of a sweep until the best is decided, or its differences are precise (`sweep.until`).

All settings are trained with two seeds first. After each look, settings that are worse than the best are dropped and
the others get more seeds, except those that the maximum of seeds is unlikely to tell apart from it. Intervals are wide
enough to hold at all looks together (repeated confidence intervals, Jennison and Turnbull 1989, with Pocock's constant
level), whatever the maximum of seeds is.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cli.sweep_config import SweepConfig, parse_precision
from launch.halving import Candidate, check_decides_length, group_candidates
from launch.looks import LookLog, read_looks
from launch.metric_choice import UNITS, check_comparable, choose_metric, read_measurement
from launch.preview import metric_at_goal, read_states
from launch.status import RunStatus
from launch.study import PlannedRun, Study
from nanogpt.config import Metric
from nanogpt.console import print_text
from nanogpt.errors import STOPPED, BadInput, one_line
from nanogpt.formatting import format_table
from nanogpt.loss_check import find_loss_problem
from nanogpt.metrics_file import read_rows
from nanogpt.run_state import FAILED
from nanogpt.statistics import mean
from nanogpt.verdicts import LOOK_LEVEL, LOOKS, Verdict, decision_chance, describe_verdict, judge_settings

logger = logging.getLogger(__name__)

UNLIKELY = 0.1  # probability of a decision with all seeds below which a setting gets no more; costs 1 % of decisions


@dataclass
class SequentialSetting(Candidate):
    """Runs that differ in their seed alone, in the order in which they are trained."""

    seeds: int = 0
    """Number of seeds by which it was last judged."""
    state: str = ""
    """`worse`, `diverged` or `failed`; empty: it gets more seeds."""
    verdict: Verdict | None = None
    losses: dict[int, float] = field(default_factory=dict[int, float])
    set_aside: bool = False
    """True while all its seeds are unlikely to tell it apart from the best: then it gets no more."""

    @property
    def judged_runs(self) -> list[PlannedRun]:
        return self.runs[: self.seeds]


def add_seeds(study: Study, settings: SweepConfig, run: Callable[[Study], int]) -> int:
    """Train the settings of a study with more and more seeds. Return 0 if one of them is the best and none failed.

    `run` trains or submits the runs of a study and waits for them. Raises BadInput.
    """
    found = [SequentialSetting(candidate.runs) for candidate in group_candidates(study.runs)]
    check_can_add_seeds(study, found, settings)
    metric = choose_metric([planned.config for planned in study.runs], "val_loss", f"sweep.until={settings.until}")
    most = max(len(setting.runs) for setting in found)
    stages = plan_stages(most)
    print_plan(found, stages, settings)
    log, dry_run = start_log(study, settings, metric), study.runs[0].config.dry_run
    code: int | None = None
    for seeds in stages:
        left = [setting for setting in found if not setting.state]
        for setting in left:
            if not setting.set_aside:
                setting.seeds = min(seeds, len(setting.runs))
        part = Study(study.path, [planned for setting in left for planned in setting.judged_runs])
        if open_ := read_losses(part, log, retry=bool(settings.retry)):
            logger.info(f"=== look at {seeds} seeds: {len(left)} of {len(found)} settings, {len(open_)} runs to train")
            code = run(Study(study.path, open_))
            if code == STOPPED or code >= 128 or dry_run:
                return code
        if missing := judge_look(part, found, log, settings, most):
            logger.info(f"the look at {seeds} seeds is incomplete: {missing}; the same command continues")
            return code or 1
        log.seeds, log.end = seeds, find_end(left, settings.until, last=seeds == stages[-1])
        log.dropped = {planned.path.name for setting in found if setting.state == "worse" for planned in setting.runs}
        if not dry_run:
            log.write(study.path)
            print_look(left, len(found), seeds, metric)
        if log.end:
            break
    if dry_run:
        return run(Study(study.path, [planned for setting in found for planned in setting.judged_runs]))
    print_end(found, log, most)
    return 0 if any(not setting.state for setting in found) and all(s.state != "failed" for s in found) else code or 1


def check_can_add_seeds(study: Study, found: Sequence[SequentialSetting], settings: SweepConfig) -> None:
    """Raise BadInput if there are not several settings with several seeds, or they are not trained to their end."""
    name = f"sweep.until={settings.until}"
    check_decides_length(study.runs[0].config, name, "which trains each run once, to its end")
    if len(found) < 2:
        raise BadInput(f"{name}: compares settings; sweep another key beside training.seed")
    if few := next((setting for setting in found if len(setting.runs) < 2), None):
        raise BadInput(
            f"{name}: {few.name} has one seed; give the most that it may use, e.g. training.seed=range(1,13)"
        )


def plan_stages(most: int) -> list[int]:
    """Return the number of seeds at each look."""
    return [*(seeds for seeds in LOOKS if seeds < most), most]


def print_plan(found: Sequence[SequentialSetting], stages: Sequence[int], settings: SweepConfig) -> None:
    least = sum(min(stages[0], len(setting.runs)) for setting in found)
    looks = ", ".join(map(str, stages))
    most = sum(len(setting.runs) for setting in found)
    logger.info(f"until   {settings.until}: {len(found)} settings, {least} to {most} runs; looks at {looks} seeds")


def start_log(study: Study, settings: SweepConfig, metric: Metric) -> LookLog:
    """Return the losses that decided earlier looks; with sweep.retry=failed without the runs that diverged."""
    stored = read_looks(study.path)
    losses = stored.losses if stored and stored.metric == metric else {}
    kept = {name: loss for name, loss in losses.items() if math.isfinite(loss) or not settings.retry}
    return LookLog(settings.until or "", metric, losses=kept)


def read_losses(part: Study, log: LookLog, retry: bool = False) -> list[PlannedRun]:
    """Add the losses of runs that have ended to the log, with `retry` of those alone that did not diverge. Return the
    other runs.
    """
    unknown = Study(part.path, [planned for planned in part.runs if planned.path.name not in log.losses])
    states = read_states(unknown) if unknown.runs else {}
    for planned in unknown.runs:
        loss = find_loss(planned, states[planned.path], log.metric)
        if loss is not None and (math.isfinite(loss) or not retry):
            log.losses[planned.path.name] = loss
    return [planned for planned in unknown.runs if planned.path.name not in log.losses]


def find_loss(planned: PlannedRun, point: RunStatus, metric: Metric) -> float | None:
    """Return the final loss of a run, infinite if it diverged; None if it has none."""
    if point.state == "diverged":
        return math.inf
    loss = metric_at_goal(planned, metric)
    if loss is None:
        return None
    rows = [row for row in read_rows(planned.path / "metrics.jsonl") if "val_loss" in row]
    measurement = read_measurement(planned)
    vocab_size = measurement.vocab_size if measurement else None
    best = min(row["val_loss"] for row in rows)
    trouble = find_loss_problem(rows[-1]["val_loss"], best, vocab_size, rows[-1].get("train_loss"))
    return math.inf if trouble and trouble.diverged else loss


def judge_look(part: Study, found: Sequence[SequentialSetting], log: LookLog, settings: SweepConfig, most: int) -> str:
    """Judge the settings that are left by their runs in `part`. Return the runs that have no result yet, as text.

    Raises BadInput if losses were measured on different data.
    """
    open_ = read_losses(part, log)
    states = read_states(Study(part.path, open_)) if open_ else {}
    if missing := [f"{one_line(run.name)} {point.state}" for run, point in states.items() if point.state not in FAILED]:
        return ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    check_comparable(part.runs, log.metric)
    for setting in [setting for setting in found if not setting.state]:
        known = {planned.config.training.seed: log.losses.get(planned.path.name) for planned in setting.judged_runs}
        setting.losses = {seed: loss for seed, loss in known.items() if loss is not None}
        if len(setting.losses) < len(known):
            setting.state = "failed"
    decides = parse_precision(settings.until) is None
    judge_left(found, settings.tolerance, most if decides else None)
    return ""


def judge_left(found: Sequence[SequentialSetting], tolerance: float, most: int | None) -> None:
    """Set the verdict of each setting that is left by its losses, and its state if it diverged or is worse.

    Those that `most` seeds are unlikely to tell apart from the best are set aside; None: they are not.
    """
    for setting in found:
        if math.inf in setting.losses.values():
            setting.state = "diverged"
    fair = [setting for setting in found if setting.state in ("", "worse")]
    if all(setting.state for setting in fair):
        return
    dropped = [i for i, setting in enumerate(fair) if setting.state]
    sizes = [len(setting.losses) for setting in fair]
    judged = judge_settings([s.losses for s in fair], tolerance=tolerance, level=LOOK_LEVEL, dropped=dropped)
    for i, (setting, verdict) in enumerate(zip(fair, judged.verdicts, strict=True)):
        if not setting.state:
            setting.verdict, setting.val = verdict, mean(list(setting.losses.values()))
            setting.state = "worse" if verdict.kind == "worse" else ""
            chance = decision_chance(judged, i, sizes, most, tolerance, LOOK_LEVEL) if most is not None else 1.0
            setting.set_aside = verdict.kind == "undecided" and chance < UNLIKELY


def find_end(judged: Sequence[SequentialSetting], until: str | None, last: bool) -> str:
    """Return why no seeds are added after a look: `decided`, `precise`, `undecidable`, `maximum`, `no setting`; or an
    empty text.
    """
    left = [setting for setting in judged if not setting.state and setting.verdict]
    if not left:
        return "no setting"
    precision, open_ = parse_precision(until), [s for s in left if s.verdict and s.verdict.kind == "undecided"]
    if not open_:
        return "decided"
    halves = [setting.verdict.half for setting in open_ if setting.verdict]
    if precision is not None and all(half is not None and half <= precision for half in halves):
        return "precise"
    if all(setting.set_aside for setting in open_) and not last:
        return "undecidable"
    return "maximum" if last else ""


def print_look(judged: Sequence[SequentialSetting], count: int, seeds: int, metric: Metric) -> None:
    """Print the settings that a look judged, best first."""
    rows: list[tuple[str, ...]] = []
    for setting in sorted(judged, key=lambda setting: (setting.state != "", setting.val)):
        verdict = setting.verdict
        half = "" if verdict is None or verdict.half is None else f"{verdict.difference:+.4f} ± {verdict.half:.4f}"
        word = describe_verdict(verdict, "best") if verdict else setting.state
        value = f"{setting.val:.4f}" if math.isfinite(setting.val) else ""
        rows.append((setting.name, str(len(setting.losses)), value, half, word))
    left = sum(not setting.state for setting in judged)
    title = f"look at {seeds} seeds: {left} of {count} settings left"
    print_text(format_table(title, ("setting", "seeds", UNITS[metric], "difference", ""), rows))


def print_end(found: Sequence[SequentialSetting], log: LookLog, most: int) -> None:
    """Print the best setting, what is as good as known, and how many runs it took."""
    ended = {
        "decided": f"decided with {log.seeds} seeds",
        "precise": f"precise with {log.seeds} seeds",
        "maximum": f"not decided with {log.seeds} seeds, the maximum; more seeds in training.seed continue",
        "undecidable": f"ended with {log.seeds} seeds: the others are not told apart, and with the maximum of "
        f"{most} the chance of that is below {UNLIKELY:.0%}; more continue",
    }
    runs = f"{sum(setting.seeds for setting in found)} of {sum(len(setting.runs) for setting in found)} runs"
    print_text(f"{ended.get(log.end, log.end)}: {runs}")
    if (best := min((s for s in found if not s.state), key=lambda s: s.val, default=None)) is None:
        return
    print_text(f"best    {best.name}, {UNITS[log.metric]} {best.val:.4f}")
    for state in ("equivalent", "undecided", "failed", "diverged"):
        names = [
            s.name for s in found if s is not best and state in (s.state, s.state or (s.verdict and s.verdict.kind))
        ]
        if names:
            print_text(
                f"        {'not told apart' if state == 'undecided' else state}: {one_line(', '.join(names), 300)}"
            )
