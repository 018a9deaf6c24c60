"""Steps given to the device whose numbers aren't read yet, so that it never waits for the host.

Nothing is lost by reading late: from the first step on whose loss or norm isn't finite the optimizer changes nothing
(`TrainState.broken`), so at the read the weights are those before that step, and later steps are done again.
"""

import time
from collections.abc import Iterator

from nanogpt.config import TrainConfig
from nanogpt.training.state import TrainState
from nanogpt.training.step import StepMetrics, Unread, advance, read


class Pending:
    """The steps since the last read, on every rank the same."""

    def __init__(self, state: TrainState, config: TrainConfig) -> None:
        self.state, self.config = state, config
        self.steps: list[Unread] = []
        self.since = 0.0

    def begin(self) -> None:
        """A step begins; the clock of the first runs until the read."""
        if not self.steps:
            self.since = time.monotonic()

    def due(self) -> bool:
        """Whether to read now: at every step where the host decides about the update, else when a row is written."""
        return self.state.broken is None or self.state.step % self.config.tracking.log_every == 0

    def read(self) -> Iterator[tuple[StepMetrics, float]]:
        """Wait for the device; then each step's numbers and seconds, while `state` counts as after that step.

        The first that isn't finite comes last: `state` is then as before it.
        """
        steps, self.steps = self.steps, []
        found = read(steps) if steps else []
        seconds = (time.monotonic() - self.since) / max(1, len(steps))
        for step, metrics in zip(steps, found, strict=True):
            self.state.step, self.state.samples = step.step, step.samples
            if not metrics.finite:
                self.mend(step)
                yield metrics, seconds
                return
            advance(self.state, self.config)
            yield metrics, seconds

    def mend(self, step: Unread) -> None:
        """Let the optimizer go on after a step that wasn't finite."""
        if self.state.broken is not None:
            self.state.broken.zero_()
            if step.first:  # what it has now are zeros
                self.state.optimizer.state.clear()
