"""The loop: evaluate, save, stop or step, in that order, at every step boundary."""

import math
import time
from collections.abc import Callable

from nanogpt.config import TrainConfig
from nanogpt.data.batches import TrainBatches
from nanogpt.errors import Diverged
from nanogpt.evaluation.loss import LossEvaluation, Stopped
from nanogpt.run_directory import RunDirectory
from nanogpt.training.record import Record
from nanogpt.training.state import TrainState
from nanogpt.training.step import train_step


def train_loop(
    config: TrainConfig,
    state: TrainState,
    batches: TrainBatches,
    evaluate: LossEvaluation,
    run: RunDirectory,
    record: Record,
    should_stop: Callable[[], bool],
) -> bool:
    """Train from the state's step to the last. Returns True at the end, False when asked to stop; all is saved."""
    saved = (state.step, state.evaluated) if state.step in run.checkpoints.steps() else None
    while True:
        if evaluation_due(state, config):
            try:
                results = evaluate(state.model, should_stop)
                note_results(state, results)
                record.evaluation(results)
            except Stopped:
                pass  # evaluated again after the restart
        finished = state.step == state.steps and state.evaluated == state.step
        reason = finished or should_stop() or save_due(state, config)
        if saved != (state.step, state.evaluated) and reason:
            save(state, run)
            saved = (state.step, state.evaluated)
        if finished or should_stop():
            return finished
        started = time.monotonic()
        metrics = train_step(state, batches.step(state.samples), config)
        due = record.due()
        if due:
            float(metrics.loss)  # waits for the device, so that the clock sees the work
        record.took(time.monotonic() - started)
        if due:
            record.row(metrics)


def evaluation_due(state: TrainState, config: TrainConfig) -> bool:
    """At every interval, at step 0 and at the end; once."""
    at_boundary = state.step % config.eval.every == 0 or state.step == state.steps
    return at_boundary and state.evaluated != state.step


def save_due(state: TrainState, config: TrainConfig) -> bool:
    """At every interval and after the best evaluation so far, but not before the first step."""
    is_best = state.best is not None and state.best[1] == state.step
    return state.step > 0 and (state.step % config.checkpoint.every == 0 or is_best)


def note_results(state: TrainState, results: dict[str, float]) -> None:
    """Remember an evaluation and whether it is the best. Raises Diverged for a loss that is not a finite number."""
    if not all(math.isfinite(value) for value in results.values()):
        raise Diverged(
            f"step {state.step}: the validation loss is {results['val_loss']}; the last checkpoint is intact"
        )
    state.evaluated, state.results = state.step, results
    if state.best is None or results["val_loss"] < state.best[0]:
        state.best = (results["val_loss"], state.step)


def save(state: TrainState, run: RunDirectory) -> None:
    """A checkpoint of this very step; the rows before it are on disk first. Raises Diverged, never saves a NaN."""
    if not state.is_finite():
        raise Diverged(f"step {state.step}: a weight is not finite; nothing was saved, the last checkpoint is intact")
    run.metrics.sync()
    run.checkpoints.save(state.step, state.tensors(), state.facts())
