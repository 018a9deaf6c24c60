"""The training loop of every rank. Each step boundary agrees on stop requests, evaluates, saves, and stops or steps."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nanogpt.checkpoint import Tensors
from nanogpt.config import TrainConfig
from nanogpt.console import format_command
from nanogpt.data.batches import Batch, TrainBatches
from nanogpt.distributed.signals import Stop, StopFlag
from nanogpt.distributed.watchdog import Watchdog
from nanogpt.errors import Diverged
from nanogpt.evaluation.loss import Stopped
from nanogpt.evaluation.tasks import Evaluations
from nanogpt.model.fsdp import gather_full_model
from nanogpt.training.auto_batch_size import raise_did_not_fit
from nanogpt.training.nonfinite import copy_to_cpu, describe_incident, write_incident
from nanogpt.training.run_logger import RunLogger
from nanogpt.training.state import TrainState
from nanogpt.training.step import PendingStep, PendingSteps, StepMetrics, skip_step, train_step

POLL_SECONDS = 0.01  # between polls of a save


@dataclass(kw_only=True)
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
    """(step, last evaluated step) of the newest checkpoint."""
    stop_request: Stop = Stop.NO
    """The last request that the ranks agreed on."""

    def __post_init__(self) -> None:
        self.pending = PendingSteps(self.state, self.config)

    def run(self) -> bool:
        """Train to the last step, or to stop_at_fraction, and save.

        Returns True at that step, False if it stopped before on request.
        """
        while (finished := self.reach_boundary()) is None:
            self.take_step()
        return finished

    def reach_boundary(self) -> bool | None:
        """Evaluate and save as is due before a step. Returns None if the step is to be taken, else as `run`."""
        state = self.state
        asked = self.sync_stop_request()
        if asked:
            self.flush_metrics()
        if is_evaluation_due(state, self.config) and self.may_evaluate(asked):
            try:
                self.run_evaluation(asked)
            except Stopped:
                asked = self.sync_stop_request()  # evaluate again after the restart
        finished = state.step == self.last_step and state.last_eval_step == state.step
        if (finished or asked or is_save_due(state, self.config)) and asked < Stop.STOP_WITHOUT_SAVING:
            self.save()
        if not (finished or asked):
            return None
        self.finish_saving(asked)
        return finished

    @property
    def last_step(self) -> int:
        return self.config.last_step(self.state.total_steps)

    def sync_stop_request(self) -> Stop:
        """Return the highest stop request of all ranks. If rank 0 cannot save, every rank raises the error."""
        self.watchdog.heartbeat(self.state.step)
        given_up = self.logger is not None and self.logger.checkpointer.has_failed()
        self.stop_request = Stop(
            self.state.group.all_reduce_max(Stop.SAVE_FAILED if given_up else self.stop_flag.level)
        )
        if self.stop_request == Stop.SAVE_FAILED:
            self.state.group.broadcast_from_rank0(self.raise_save_error)
        return self.stop_request

    def may_evaluate(self, asked: Stop) -> bool:
        """Return whether to evaluate now. After a stop request only the last step of the run is evaluated."""
        return not asked or (asked == Stop.SAVE_AND_STOP and self.state.step == self.last_step)

    def run_evaluation(self, asked: Stop) -> None:
        """Evaluate and report. Raises Stopped at the next signal, Diverged for a result that is not finite."""
        model = gather_full_model(self.state.model)
        results = self.evaluations(model, lambda: self.sync_stop_request() > asked)
        if not all(math.isfinite(value) for value in results.values()):
            wrong = next(f"{name} is {value}" for name, value in results.items() if not math.isfinite(value))
            raise self.divergence_error(f"step {self.state.step}: {wrong}")
        record_results(self.state, results)
        if self.logger:
            self.logger.log_evaluation(results, model)

    def save(self) -> None:
        """Begin to write a checkpoint, unless this step has one."""
        if self.saved == (self.state.step, self.state.last_eval_step):
            return
        self.wait_for_save()
        self.sync_stop_request()  # raises if too many saves failed
        self.saved = self.state.step, self.state.last_eval_step
        if self.logger:
            self.logger.checkpointer.save(self.state)
        else:
            for _ in self.state.gather_tensors():
                pass  # rank 0 gathers this rank's shards

    def wait_for_save(self) -> None:
        """Wait on every rank until rank 0's save is done."""
        while self.state.group.all_reduce_max(self.logger is not None and self.logger.checkpointer.is_busy()):
            self.watchdog.heartbeat(self.state.step)
            time.sleep(POLL_SECONDS)

    def finish_saving(self, asked: Stop) -> None:
        """Wait for the last save. If it failed, every rank raises the error."""
        self.wait_for_save()
        if asked < Stop.STOP_WITHOUT_SAVING:
            self.state.group.broadcast_from_rank0(self.raise_save_error)

    def raise_save_error(self) -> None:
        if self.logger:
            self.logger.checkpointer.raise_error()

    def take_step(self) -> None:
        """Run one step. Its metrics are read now or later."""
        self.pending.start_clock()
        with raise_did_not_fit(self.config, self.state.compute, everywhere=self.state.group.world == 1):
            step = train_step(self.state, self.micro_batches(), self.config)
        self.add_step(step)

    def add_step(self, step: PendingStep) -> None:
        """Count a step, and read the metrics of all pending ones if they are due."""
        self.pending.steps.append(step)
        if self.pending.must_flush() or self.needs_metrics_now():
            self.flush_metrics()

    def needs_metrics_now(self) -> bool:
        """Return whether the end, an evaluation or a save is due, which needs all metrics first."""
        state = self.state
        return state.step == self.last_step or is_evaluation_due(state, self.config) or is_save_due(state, self.config)

    def flush_metrics(self) -> None:
        """Read and report the metrics of all pending steps, and handle one that is not finite."""
        for metrics, seconds in self.pending.flush():
            if not metrics.finite:
                self.handle_nonfinite(metrics)
                continue
            spike = self.state.spikes.observe(metrics.loss, metrics.grad_norm)
            if self.logger:
                self.logger.log_step(metrics, spike, seconds)
                self.logger.checkpointer.reserve_buffers(self.state)

    def micro_batches(self) -> Iterator[Batch]:
        """Yield this rank's micro-batches, with a heartbeat before each."""
        for batch in self.batches.micro_batches(self.state.samples):
            self.watchdog.heartbeat(self.state.step)
            yield batch

    def handle_nonfinite(self, metrics: StepMetrics) -> None:
        """Write an incident to replay the step. Then skip the step, or raise Diverged."""
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
        """Write the incident on rank 0. Returns a hint on how to look at it."""
        assert self.logger is not None
        where, whole = write_incident(self.state, tensors, self.logger.run.path, self.config, about)
        return f"; {format_command('train')} replay={where} runs this step alone" if whole else f"; see {where}"

    def divergence_error(self, what: str) -> Diverged:
        """Return the error, which only rank 0 prints."""
        error = Diverged(
            f"{what}; {'the last checkpoint is intact and from before' if self.saved else 'nothing was saved yet'}; "
            "a lower optimizer.lr or a longer schedule.warmup_steps is the usual remedy"
        )
        error.reported_elsewhere = self.logger is None
        return error


def is_evaluation_due(state: TrainState, config: TrainConfig) -> bool:
    """Return whether this step is to be evaluated and has not been yet."""
    return config.evaluates_at(state.step, state.total_steps) and state.last_eval_step != state.step


def is_save_due(state: TrainState, config: TrainConfig) -> bool:
    """Return whether to save: every checkpoint.every steps and after the best evaluation, but not at step 0."""
    is_best = state.best is not None and state.best[1] == state.step
    return state.step > 0 and (state.step % config.checkpoint.every == 0 or is_best)


def record_results(state: TrainState, results: dict[str, float]) -> None:
    """Store the results of an evaluation in the state, and the best loss."""
    state.last_eval_step, state.last_eval = state.step, results
    if state.best is None or results["val_loss"] < state.best[0]:
        state.best = (results["val_loss"], state.step)
