"""Steps given to the device whose numbers aren't read yet, so that it never waits for the host.

Nothing is lost by reading late: from the first step on whose loss or norm isn't finite the optimizer changes nothing
(`TrainState.broken`), so at the read the weights are those before that step, and later steps are done again.
"""

import time
from collections.abc import Iterator

from nanogpt.config import TrainConfig
from nanogpt.training.state import TrainState
from nanogpt.training.step import PendingStep, StepMetrics, advance, read_metrics


class PendingSteps:
    """The steps since the last read, on every rank the same."""

    def __init__(self, state: TrainState, config: TrainConfig) -> None:
        self.state, self.config = state, config
        self.steps: list[PendingStep] = []
        self.first_started = 0.0

    def start_clock(self) -> None:
        """A step begins; the clock of the first runs until the read."""
        if not self.steps:
            self.first_started = time.monotonic()

    def must_flush(self) -> bool:
        """Whether to read now: at every step where the host decides about the update, else when a row is written."""
        return self.state.found_nonfinite is None or self.state.step % self.config.tracking.log_every == 0

    def flush(self) -> Iterator[tuple[StepMetrics, float]]:
        """Wait for the device; then each step's numbers and seconds, while `state` counts as after that step.

        The first that isn't finite comes last: `state` is then as before it.
        """
        steps, self.steps = self.steps, []
        found = read_metrics(steps) if steps else []
        seconds = (time.monotonic() - self.first_started) / max(1, len(steps))
        for step, metrics in zip(steps, found, strict=True):
            self.state.step, self.state.samples = step.step, step.samples
            if not metrics.finite:
                self.clear_nonfinite(step)
                yield metrics, seconds
                return
            advance(self.state, self.config)
            yield metrics, seconds

    def clear_nonfinite(self, step: PendingStep) -> None:
        """Let the optimizer go on after a step that wasn't finite."""
        if self.state.found_nonfinite is not None:
            self.state.found_nonfinite.zero_()
            if step.first_update:  # what it has now are zeros
                self.state.optimizer.state.clear()
