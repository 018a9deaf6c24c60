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
from nanogpt.distributed.watchdog import Watchdog
from nanogpt.errors import Diverged
from nanogpt.evaluation.loss import Stopped
from nanogpt.evaluation.tasks import Evaluations
from nanogpt.model.fsdp import gather_full_model
from nanogpt.training.auto_batch_size import raise_did_not_fit
from nanogpt.training.nonfinite import copy_to_cpu, describe_incident, write_incident
from nanogpt.training.pending import PendingSteps
from nanogpt.training.run_logger import RunLogger
from nanogpt.training.state import TrainState
from nanogpt.training.step import StepMetrics, skip_step, train_step

POLL_SECONDS = 0.01  # seconds between looks at a save that is waited for


@dataclass
class Loop:
    """The training loop of one start of a run. Only rank 0 has a logger, which also saves checkpoints."""

    config: TrainConfig
    state: TrainState
    batches: TrainBatches
    evaluations: Evaluations
    logger: RunLogger | None
    stop_flag: StopFlag
    watchdog: Watchdog
    saved: tuple[int, int] | None = None
    """Step, and last evaluated step, of the newest checkpoint."""
    stop_request: Stop = Stop.NO
    """What the ranks agreed on last."""

    def __post_init__(self) -> None:
        self.pending = PendingSteps(self.state, self.config)

    def run(self) -> bool:
        """Train from the state's step to the last, or to where it shall pause. Returns True there, False when asked to
        stop; all is saved.
        """
        state = self.state
        while True:
            asked = self.sync_stop_request()
            if asked:
                self.flush_metrics()
            if is_evaluation_due(state, self.config) and self.may_evaluate(asked):
                try:
                    self.run_evaluation(asked)
                except Stopped:
                    asked = self.sync_stop_request()  # evaluated again after the restart
            finished = state.step == self.last_step and state.last_eval_step == state.step
            if (finished or asked or is_save_due(state, self.config)) and asked < Stop.STOP_WITHOUT_SAVING:
                self.save()
            if finished or asked:
                self.finish_saving(asked)
                return finished
            self.take_step()

    @property
    def last_step(self) -> int:
        return self.config.last_step(self.state.total_steps)

    def sync_stop_request(self) -> Stop:
        """Whether any rank was asked to stop. Raises on all ranks what keeps the leader from saving."""
        self.watchdog.heartbeat(self.state.step)
        given_up = self.logger is not None and self.logger.checkpointer.has_failed()
        self.stop_request = Stop(
            self.state.group.all_reduce_max(Stop.SAVE_FAILED if given_up else self.stop_flag.level)
        )
        if self.stop_request == Stop.SAVE_FAILED:
            self.state.group.broadcast_from_rank0(self.raise_save_error)
        return self.stop_request

    def may_evaluate(self, asked: Stop) -> bool:
        """Not when asked to stop, unless the evaluation is all that is left to do."""
        return not asked or (asked == Stop.SAVE_AND_STOP and self.state.step == self.last_step)

    def run_evaluation(self, asked: Stop) -> None:
        """Evaluate and report. Raises Stopped at the next signal, Diverged for a loss that is not a finite number."""
        model = gather_full_model(self.state.model)
        results = self.evaluations(model, lambda: self.sync_stop_request() > asked)
        if not all(math.isfinite(value) for value in results.values()):
            wrong = next(f"{name} is {value}" for name, value in results.items() if not math.isfinite(value))
            raise self.divergence_error(f"step {self.state.step}: {wrong}")
        record_results(self.state, results)
        if self.logger:
            self.logger.log_evaluation(results, model)

    def save(self) -> None:
        """Begin a checkpoint of this very step, unless there is one."""
        if self.saved == (self.state.step, self.state.last_eval_step):
            return
        self.wait_for_save()
        self.sync_stop_request()  # raises when the save before failed once too often
        self.saved = self.state.step, self.state.last_eval_step
        if self.logger:
            self.logger.checkpointer.save(self.state)
        else:
            for _ in self.state.gather_tensors():
                pass  # the leader needs this rank's parts

    def wait_for_save(self) -> None:
        """Let the leader's writer finish; the ranks keep in touch meanwhile."""
        while self.state.group.all_reduce_max(self.logger is not None and self.logger.checkpointer.is_busy()):
            self.watchdog.heartbeat(self.state.step)
            time.sleep(POLL_SECONDS)

    def finish_saving(self, asked: Stop) -> None:
        """At the end: wait for the last save. Raises on all ranks what it failed with."""
        self.wait_for_save()
        if asked < Stop.STOP_WITHOUT_SAVING:
            self.state.group.broadcast_from_rank0(self.raise_save_error)

    def raise_save_error(self) -> None:
        if self.logger:
            self.logger.checkpointer.raise_error()

    def take_step(self) -> None:
        """One step, whose numbers are read now or later."""
        self.pending.start_clock()
        with raise_did_not_fit(self.config, self.state.compute, everywhere=self.state.group.world == 1):
            self.pending.steps.append(train_step(self.state, self.micro_batches(), self.config))
        if self.pending.must_flush() or self.needs_metrics_now():
            self.flush_metrics()

    def needs_metrics_now(self) -> bool:
        """Whether something is due that must know how the steps so far went."""
        state = self.state
        return state.step == self.last_step or is_evaluation_due(state, self.config) or is_save_due(state, self.config)

    def flush_metrics(self) -> None:
        """Report the steps so far. One whose numbers aren't finite: what `training.on_nonfinite` says."""
        for metrics, seconds in self.pending.flush():
            if not metrics.finite:
                self.handle_nonfinite(metrics)
                continue
            spike = self.state.spikes.observe(metrics.loss, metrics.grad_norm)
            if self.logger:
                self.logger.log_step(metrics, spike, seconds)
                self.logger.checkpointer.reserve_buffers(self.state)

    def micro_batches(self) -> Iterator[Batch]:
        """This rank's, with a sign of life before each."""
        for batch in self.batches.micro_batches(self.state.samples):
            self.watchdog.heartbeat(self.state.step)
            yield batch

    def handle_nonfinite(self, metrics: StepMetrics) -> None:
        """Keep all that is needed to repeat the step; then leave it out, or end. Raises Diverged."""
        state, settings = self.state, self.config.training
        about = describe_incident(state, self.batches, metrics)
        why = f"step {state.step + 1}: loss {metrics.loss}, gradient norm {metrics.grad_norm}"
        tensors = copy_to_cpu(state, write_incident=self.logger is not None)
        why += state.group.broadcast_from_rank0(lambda: self.write_incident(about, tensors))
        recent = [step for step in state.skipped_steps if step > state.step - 1000]
        if settings.on_nonfinite != "skip" or len(recent) >= settings.max_skips:
            raise self.divergence_error(why)
        skip_step(state, self.config)
        if self.logger:
            self.logger.log_skipped_step(metrics, why)

    def write_incident(self, about: dict[str, Any], tensors: dict[str, Tensors]) -> str:
        """On the leader: write the incident. Returns how to look at it."""
        assert self.logger is not None
        where, whole = write_incident(self.state, tensors, self.logger.run.path, self.config, about)
        return f"; python train.py replay={where} runs this step alone" if whole else f"; see {where}"

    def divergence_error(self, what: str) -> Diverged:
        """The error, told by the leader alone."""
        error = Diverged(
            f"{what}; {'the last checkpoint is intact and from before' if self.saved else 'nothing was saved yet'}; "
            "a lower optimizer.lr or a longer schedule.warmup_steps is the usual remedy"
        )
        error.reported_elsewhere = self.logger is None
        return error


def is_evaluation_due(state: TrainState, config: TrainConfig) -> bool:
    """At every step that is evaluated; once."""
    return config.evaluates_at(state.step, state.total_steps) and state.last_eval_step != state.step


def is_save_due(state: TrainState, config: TrainConfig) -> bool:
    """At every interval and after the best evaluation so far, but not before the first step."""
    is_best = state.best is not None and state.best[1] == state.step
    return state.step > 0 and (state.step % config.checkpoint.every == 0 or is_best)


def record_results(state: TrainState, results: dict[str, float]) -> None:
    """Remember an evaluation and whether it is the best."""
    state.last_eval_step, state.last_eval = state.step, results
    if state.best is None or results["val_loss"] < state.best[0]:
        state.best = (results["val_loss"], state.step)
