"""Asynchronous successive halving or median stopping: keep slots busy with the runs that `launch.promotion` chooses.

A choice is a function of the record (launch/rung_record.py) and is stored before it is trained, so the same command
continues an interrupted search as if nothing had happened.
"""

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cli.sweep_config import Asha
from cli.sweep_request import Sweep
from launch.cancelling import cancel_points
from launch.halving import (
    Candidate,
    check_decides_length,
    check_not_past_rung,
    describe_plan,
    group_candidates,
    with_stop_fraction,
)
from launch.metric_choice import UNITS, check_comparable, choose_metric, search_plans
from launch.preview import metric_at_goal, read_states
from launch.promotion import Rules, is_over, next_start
from launch.proposals import Proposals
from launch.rung_record import Part, RungRecord
from launch.status import RunStatus
from launch.study import Study, lock_search
from launch.submission import lock_records
from nanogpt.config import TrainConfig
from nanogpt.console import print_text
from nanogpt.errors import STOPPED, BadInput, one_line
from nanogpt.run_state import FAILED, IN_PROGRESS

logger = logging.getLogger(__name__)

MAX_FAILURES = 3  # of the first runs, after which no more are started
MAX_ROWS = 40  # of the last table


@dataclass(frozen=True)
class Slots:
    """A launcher as a search uses it."""

    count: int
    """Runs in progress at once."""
    start: Callable[[Study], int]
    """Submits runs, or trains them and returns when they have ended. Returns an exit code."""
    poll_s: float | None
    """Seconds between queries of the queue; None: `start` returns when the runs have ended."""


def search_asynchronously(sweep: Sweep[TrainConfig], sweeper: Asha, study: Study, slots: Slots) -> int:
    """Train points until the best at every rung are trained to the next one. Return 0 if one finished.

    Raises LabError before anything is written.
    """
    config, space = sweep.points[0].config, sweep.space
    check_decides_length(config, "hydra/sweeper=asha")
    plans = search_plans(space, config) if space else [planned.config for planned in study.runs]
    metric = choose_metric(plans, sweeper.metric, "hydra/sweeper=asha")
    proposals = Proposals(sweeper.search, space, study.path, sweeper.rungs) if sweeper.search and space else None
    candidates = [] if proposals else group_candidates(study.runs)
    if sweeper.final_seeds > 1 and (len(space.seeds if space else ()) > 1 or any(len(c.runs) > 1 for c in candidates)):
        why = "not with several values of training.seed, with which every point is trained"
        raise BadInput(f"hydra.sweeper.final_seeds={sweeper.final_seeds}: {why}")
    points = max(sweeper.trials, len(proposals.trials)) if proposals else len(candidates)
    rules = Rules(
        points,
        sweeper.rungs,
        sweeper.eta,
        sweeper.stop == "median",
        sweeper.backfill,
        new_first=not space,
        seeds=sweeper.final_seeds,
    )
    logger.info(f"asha    {slots.count} at once; at least {describe_plan(rules)}")
    if config.dry_run:
        return slots.start(Study(study.path, [with_stop_fraction(planned, rules, 0) for planned in study.runs]))
    search = AsynchronousSearch(study, RungRecord(study.path, rules, metric, candidates), slots, proposals)
    with lock_search(study.path):
        search.read_record(bool(sweep.settings.retry))
        return search.run()


@dataclass
class AsynchronousSearch:
    """The state of a search: what the record says, and the runs in progress."""

    study: Study
    record: RungRecord
    slots: Slots
    proposals: Proposals | None
    waiting: list[Part] = field(default_factory=list[Part])
    """Chosen, but not in progress."""
    running: list[Part] = field(default_factory=list[Part])
    missing: list[RunStatus] = field(default_factory=list[RunStatus])
    """Runs that ended before their rung, for a reason that says nothing about their settings."""

    def read_record(self, retry: bool) -> None:
        """Read what was decided and seen before; with `retry` without the runs that failed."""
        for _ in range(len(self.proposals.trials) if self.proposals else 0):
            self.add_proposal()
        parts = [part.planned for point in range(len(self.record.candidates)) for part in self.record.all_parts(point)]
        check_not_past_rung(Study(self.study.path, parts), self.record.metric, "asha")
        self.waiting = self.record.read(retry)
        states = read_states(Study(self.study.path, [part.planned for part in self.waiting]))
        self.running = [part for part in self.waiting if states[part.planned.path].state in IN_PROGRESS]
        self.waiting = [part for part in self.waiting if part not in self.running]

    def run(self) -> int:
        """Train until the search is over. Return the exit code."""
        code = 0
        try:
            while not is_over(self.record.now, self.record.rules):
                ended = 0 if self.only_failures() else self.fill_slots()
                if ended == STOPPED or ended >= 128:
                    return ended
                code = ended or code
                if self.running:
                    self.wait_for_ends()
                elif not is_over(self.record.now, self.record.rules):
                    return self.print_incomplete(code)
        except KeyboardInterrupt:
            if self.slots.poll_s is None:
                raise
            print_text(f"left; the jobs go on. nanogpt status {one_line(self.study.path)}; the same command continues")
            return 128 + signal.SIGINT
        if self.running:
            logger.info(f"over    runs in progress that are not needed any more save and stop: {len(self.running)}")
            with lock_records(self.study):
                cancel_points(list(self.read_running().values()), "the search is over")
        return self.print_results(code)

    def fill_slots(self) -> int:
        """Start runs in all free slots. Return the exit code of the launcher."""
        batch: list[Part] = []
        while len(self.running) + len(batch) < self.slots.count:
            if not self.waiting and not self.choose():
                break
            if self.waiting:
                batch.append(self.waiting.pop(0))
        for part in batch:
            logger.info(f"start   {part.describe(self.record.rules)}")
        self.running += batch
        return self.slots.start(Study(self.study.path, [part.planned for part in batch])) if batch else 0

    def choose(self) -> bool:
        """Choose the next point to train and record it. Return False if there is none."""
        start = next_start(self.record.now, self.record.rules)
        if start is None:
            return False
        point, rung = start
        if point == len(self.record.candidates):
            self.add_proposal()
        self.waiting += self.record.add_start(point, rung)
        return True

    def add_proposal(self) -> None:
        """Add the next trial of trials.jsonl, or the sampler's next one, as a candidate."""
        assert self.proposals
        record = self.record
        record.candidates.append(Candidate(self.proposals.runs(len(record.candidates), record.now, record.failures)))

    def read_running(self) -> dict[Path, RunStatus]:
        return read_states(Study(self.study.path, [part.planned for part in self.running]))

    def wait_for_ends(self) -> None:
        """Wait until a run has ended, and record the results of those that have.

        A job that is being requeued may be in no queue for a moment, so it is lost only if it is so twice in a row.
        """
        lost: set[Path] = set()
        while True:
            states = self.read_running()
            going = {path for path, status in states.items() if status.state in IN_PROGRESS}
            newly_lost = {path for path, status in states.items() if status.state == "lost"} - lost
            ended = [part for part in self.running if part.planned.path not in going | newly_lost]
            if self.slots.poll_s is None:
                ended = list(self.running)
            if ended:
                break
            lost = newly_lost
            time.sleep(self.slots.poll_s or 0)
        first = [part.planned for part in self.record.all_parts(next(iter(self.record.now.reached)))[:1]]
        check_comparable([*first, *(part.planned for part in ended)], self.record.metric)
        for part in ended:
            self.running.remove(part)
            self.store_end(part, states[part.planned.path])

    def store_end(self, part: Part, status: RunStatus) -> None:
        """Store the result of a run that has ended."""
        value = metric_at_goal(part.planned, self.record.metric)
        shown = status.state if value is None else f"{UNITS[self.record.metric]} {value:.4f}"
        logger.info(f"result  {part.describe(self.record.rules)}: {shown}")
        if value is None and status.state not in FAILED:
            self.missing.append(status)
            self.record.rules = replace(self.record.rules, backfill=False)  # would never end if these runs are needed
        else:
            self.record.add_result(part, value, status.state)

    def only_failures(self) -> bool:
        """Return whether the first runs all failed: the others probably would too."""
        ended = [self.record.failures.get(point) for results in self.record.now.results for point in results]
        return len(ended) >= MAX_FAILURES and set(ended) == {"failed"}

    def print_incomplete(self, code: int) -> int:
        """Print why the search can't go on now. Return the exit code."""
        print_text(self.record.table())
        for status in self.missing[:MAX_ROWS]:
            print_text(f"{one_line(status.path.name)}: {status.state}: {one_line(status.why, 300)}")
        what = f"{len(self.missing)} runs ended before their rung" if self.missing else "the first runs all failed"
        print_text(f"the search is incomplete: {what}; the same command continues")
        return code or 1

    def print_results(self, code: int) -> int:
        """Print how far each setting came, and the best. Return the exit code: 0 if there is one."""
        rules = self.record.rules
        print_text(self.record.table())
        ranked = self.record.now.rank(rules.stages - 1)
        if not ranked:
            return code or 1
        best = self.record.candidates[ranked[0]]
        ends = self.record.parts_of_result(ranked[0], rules.stages - 1)
        runs = ", ".join(one_line(part.planned.path) for part in ends)
        value = self.record.now.results[-1][ranked[0]]
        print_text(f"best    {best.name}, {UNITS[self.record.metric]} {value:.4f}: {runs}")
        return 0
