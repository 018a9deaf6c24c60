"""The loop, on every rank: agree, evaluate, save, stop or step, in that order, at every step boundary."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nanogpt.checkpoint import Tensors
from nanogpt.config import TrainConfig
from nanogpt.data.batches import Batch, TrainBatches
from nanogpt.distributed.signals import Stop, StopFlag
from nanogpt.distributed.watchdog import Watch
from nanogpt.errors import Diverged
from nanogpt.evaluation.loss import Stopped
from nanogpt.evaluation.tasks import Evaluations
from nanogpt.model.fsdp import gather_full_model
from nanogpt.training.auto_batch_size import naming_size
from nanogpt.training.nonfinite import describe, keep, on_cpu
from nanogpt.training.pending import Pending
from nanogpt.training.run_logger import Record
from nanogpt.training.state import TrainState
from nanogpt.training.step import StepMetrics, pass_over, train_step

POLL = 0.01  # seconds between looks at a save that is waited for


@dataclass
class Loop:
    """One start of a run, seen from one rank. Only the leader has a record, which also saves."""

    config: TrainConfig
    state: TrainState
    batches: TrainBatches
    evaluate: Evaluations
    record: Record | None
    flag: StopFlag
    watch: Watch
    saved: tuple[int, int] | None = None
    """Step, and last evaluated step, of the newest checkpoint."""
    agreed: Stop = Stop.NO
    """What the ranks agreed on last."""

    def __post_init__(self) -> None:
        self.pending = Pending(self.state, self.config)

    def run(self) -> bool:
        """Train from the state's step to the last, or to where it shall pause. Returns True there, False when asked to
        stop; all is saved.
        """
        state = self.state
        while True:
            asked = self.asked()
            if asked:
                self.read()
            if evaluation_due(state, self.config) and self.may_evaluate(asked):
                try:
                    self.evaluated(asked)
                except Stopped:
                    asked = self.asked()  # evaluated again after the restart
            finished = state.step == self.goal and state.evaluated == state.step
            if (finished or asked or save_due(state, self.config)) and asked < Stop.NOW:
                self.save()
            if finished or asked:
                self.settle(asked)
                return finished
            self.step()

    @property
    def goal(self) -> int:
        return self.config.last_step(self.state.steps)

    def asked(self) -> Stop:
        """Whether any rank was asked to stop. Raises on all ranks what keeps the leader from saving."""
        self.watch.beat(self.state.step)
        given_up = self.record is not None and self.record.saver.gave_up()
        self.agreed = Stop(self.state.peers.agree(Stop.FAILED if given_up else self.flag.level))
        if self.agreed == Stop.FAILED:
            self.state.peers.from_leader(self.outcome)
        return self.agreed

    def may_evaluate(self, asked: Stop) -> bool:
        """Not when asked to stop, unless the evaluation is all that is left to do."""
        return not asked or (asked == Stop.SOON and self.state.step == self.goal)

    def evaluated(self, asked: Stop) -> None:
        """Evaluate and report. Raises Stopped at the next signal, Diverged for a loss that is not a finite number."""
        model = gather_full_model(self.state.model)
        results = self.evaluate(model, lambda: self.asked() > asked)
        if not all(math.isfinite(value) for value in results.values()):
            wrong = next(f"{name} is {value}" for name, value in results.items() if not math.isfinite(value))
            raise self.diverged(f"step {self.state.step}: {wrong}")
        note_results(self.state, results)
        if self.record:
            self.record.evaluation(results, model)

    def save(self) -> None:
        """Begin a checkpoint of this very step, unless there is one."""
        if self.saved == (self.state.step, self.state.evaluated):
            return
        self.wait()
        self.asked()  # raises when the save before failed once too often
        self.saved = self.state.step, self.state.evaluated
        if self.record:
            self.record.saver.save(self.state)
        else:
            for _ in self.state.whole_tensors():
                pass  # the leader needs this rank's parts

    def wait(self) -> None:
        """Let the leader's writer finish; the ranks keep in touch meanwhile."""
        while self.state.peers.agree(self.record is not None and self.record.saver.busy()):
            self.watch.beat(self.state.step)
            time.sleep(POLL)

    def settle(self, asked: Stop) -> None:
        """At the end: wait for the last save. Raises on all ranks what it failed with."""
        self.wait()
        if asked < Stop.NOW:
            self.state.peers.from_leader(self.outcome)

    def outcome(self) -> None:
        if self.record:
            self.record.saver.outcome()

    def step(self) -> None:
        """One step, whose numbers are read now or later."""
        self.pending.begin()
        with naming_size(self.config, self.state.compute, everywhere=self.state.peers.world == 1):
            self.pending.steps.append(train_step(self.state, self.micro_batches(), self.config))
        if self.pending.due() or self.eventful():
            self.read()

    def eventful(self) -> bool:
        """Whether something is due that must know how the steps so far went."""
        state = self.state
        return state.step == self.goal or evaluation_due(state, self.config) or save_due(state, self.config)

    def read(self) -> None:
        """Report the steps so far. One whose numbers aren't finite: what `training.on_nonfinite` says."""
        for metrics, seconds in self.pending.read():
            if not metrics.finite:
                self.not_finite(metrics)
                continue
            spike = self.state.spikes.see(metrics.loss, metrics.grad_norm)
            if self.record:
                self.record.stepped(metrics, spike, seconds)
                self.record.saver.reserve(self.state)

    def micro_batches(self) -> Iterator[Batch]:
        """This rank's, with a sign of life before each."""
        for batch in self.batches.micro_batches(self.state.samples):
            self.watch.beat(self.state.step)
            yield batch

    def not_finite(self, metrics: StepMetrics) -> None:
        """Keep all that is needed to repeat the step; then leave it out, or end. Raises Diverged."""
        state, settings = self.state, self.config.training
        about = describe(state, self.batches, metrics)
        why = f"step {state.step + 1}: loss {metrics.loss}, gradient norm {metrics.grad_norm}"
        tensors = on_cpu(state, keep=self.record is not None)
        why += state.peers.from_leader(lambda: self.kept(about, tensors))
        recent = [step for step in state.skipped if step > state.step - 1000]
        if settings.on_nonfinite != "skip" or len(recent) >= settings.max_skips:
            raise self.diverged(why)
        pass_over(state, self.config)
        if self.record:
            self.record.skipped(metrics, why)

    def kept(self, about: dict[str, Any], tensors: dict[str, Tensors]) -> str:
        """On the leader: write the incident. Returns how to look at it."""
        assert self.record is not None
        where, whole = keep(self.state, tensors, self.record.run.path, self.config, about)
        return f"; python train.py replay={where} runs this step alone" if whole else f"; see {where}"

    def diverged(self, what: str) -> Diverged:
        """The error, told by the leader alone."""
        error = Diverged(
            f"{what}; {'the last checkpoint is intact and from before' if self.saved else 'nothing was saved yet'}; "
            "a lower optimizer.lr or a longer schedule.warmup_steps is the usual remedy"
        )
        error.reported_elsewhere = self.record is None
        return error


def evaluation_due(state: TrainState, config: TrainConfig) -> bool:
    """At every step that is evaluated; once."""
    return config.evaluates_at(state.step, state.steps) and state.evaluated != state.step


def save_due(state: TrainState, config: TrainConfig) -> bool:
    """At every interval and after the best evaluation so far, but not before the first step."""
    is_best = state.best is not None and state.best[1] == state.step
    return state.step > 0 and (state.step % config.checkpoint.every == 0 or is_best)


def note_results(state: TrainState, results: dict[str, float]) -> None:
    """Remember an evaluation and whether it is the best."""
    state.evaluated, state.results = state.step, results
    if state.best is None or results["val_loss"] < state.best[0]:
        state.best = (results["val_loss"], state.step)
