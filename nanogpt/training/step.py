"""One optimizer step on all ranks, and the steps whose metrics the host has not read yet.

On a GPU the device runs ahead: a step's loss and gradient norm are read later, together with those of other steps. Once
they are not finite the optimizer skips all updates (`TrainState.found_nonfinite`). So when the host reads them the
weights are those before the bad step, and the steps after it are run again.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt.config import TrainConfig
from nanogpt.data.batches import Batch
from nanogpt.distributed.process_group import ddp_gradient_sync
from nanogpt.model.fsdp import gather_full_tensor, set_gradient_sync
from nanogpt.optim.schedule import set_rates
from nanogpt.training.state import TrainState

Phase = Callable[[str], AbstractContextManager[object]]
"""Returns the context for a named phase of a step: a timer or a profiler's label in `nanogpt.benchmark`."""


def no_phase_timer(_: str) -> AbstractContextManager[None]:
    """Return a context that does nothing."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Metrics of one step; all but `micro_losses` are equal on every rank."""

    loss: float
    """Mean over all tokens of the step before the update, in nats per token."""
    grad_norm: float
    """Global norm before clipping."""
    lr: float
    """Learning rate of a parameter group whose peak is optimizer.lr; other groups have the same share of their peak."""
    finite: bool
    """True if the update was made; False if loss or gradient was not finite and the weights are unchanged."""
    micro_losses: list[Tensor]
    """Contributions of this rank's micro-batches to the loss."""


@dataclass(frozen=True, kw_only=True)
class PendingStep:
    """A step that the device may still be running."""

    step: int
    """Steps done before it."""
    samples: int
    """Training windows seen before it."""
    first_update: bool
    """True if the optimizer had no state before it."""
    loss_and_norm: Tensor
    """(2,), as in StepMetrics."""
    lr: float
    scale: float
    """Loss scale under fp16, else 1."""
    micro_losses: list[Tensor]

    def wait(self) -> StepMetrics:
        """Wait for the device and return the metrics of the step."""
        return read_metrics([self])[0]

    def to_metrics(self, loss: float, norm: float) -> StepMetrics:
        """Return the metrics, given loss and gradient norm as Python numbers.

        A non-finite gradient is tolerated only under fp16 loss scaling (scale > 1); a non-finite loss never is.
        """
        finite = math.isfinite(loss) and (math.isfinite(norm) or self.scale > 1)
        return StepMetrics(loss=loss, grad_norm=norm, lr=self.lr, finite=finite, micro_losses=self.micro_losses)


def read_metrics(steps: Sequence[PendingStep]) -> list[StepMetrics]:
    """Wait for the device and return the metrics of several steps, copied in one transfer."""
    numbers = torch.stack([step.loss_and_norm for step in steps]).tolist()
    return [step.to_metrics(loss, norm) for step, (loss, norm) in zip(steps, numbers, strict=True)]


def train_step(
    state: TrainState, micro_batches: Iterable[Batch], config: TrainConfig, phase: Phase = no_phase_timer
) -> PendingStep:
    """Run one step on the mean loss of all micro-batches of all ranks, and advance `state`.

    A step that is not finite makes no update. With `state.found_nonfinite` no later step does until it is cleared.
    """
    lr = set_rates(state.optimizer, state.step, state.total_steps, config)
    loss_and_norm, micro_losses = forward_backward(state, micro_batches, config, phase)
    return update(state, config, lr, loss_and_norm, micro_losses, phase)


def update(
    state: TrainState,
    config: TrainConfig,
    lr: float,
    loss_and_norm: Tensor,
    micro_losses: list[Tensor],
    phase: Phase = no_phase_timer,
) -> PendingStep:
    """Update the weights with the gradients and results of `forward_backward`, and advance `state`."""
    first_update = not state.optimizer.state
    if state.found_nonfinite is None:
        loss_and_norm = loss_and_norm.cpu()  # the one wait for the device in a step
    else:
        state.found_nonfinite.masked_fill_(~loss_and_norm.isfinite().all(), 1.0)  # read by the optimizer on the device
    pending = PendingStep(
        step=state.step,
        samples=state.samples,
        first_update=first_update,
        loss_and_norm=loss_and_norm,
        lr=lr,
        scale=state.scaler.get_scale(),
        micro_losses=micro_losses,
    )
    if state.found_nonfinite is not None or pending.wait().finite:
        with phase("optimizer"):
            state.scaler.step(state.optimizer)
            state.scaler.update()
    state.clear_gradients()
    advance(state, config)
    return pending


def forward_backward(
    state: TrainState, micro_batches: Iterable[Batch], config: TrainConfig, phase: Phase = no_phase_timer
) -> tuple[Tensor, list[Tensor]]:
    """Leave clipped gradients, averaged over all ranks, in the parameters, without waiting for the device.

    Returns loss and gradient norm before clipping as one tensor (2,), and the loss of each micro-batch.
    """
    world, per_rank = state.group.world, config.grad_accum(state.group.world)
    micro_losses: list[Tensor] = []
    for number, batch in enumerate(micro_batches, 1):
        set_gradient_sync(state.forward, last=number == per_rank, each=state.reduce_every_micro_batch)
        with ddp_gradient_sync(state.forward, last=number == per_rank), state.compute.autocast():
            if state.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()
            with phase("forward"):
                loss = state.forward(batch.ids, batch.targets, keys=batch.keys) / config.training.batch_tokens
            with phase("backward"):  # DistributedDataParallel averages over ranks, but these losses are to be summed
                state.scaler.scale(loss * world).backward()
        micro_losses.append(loss.detach())
    with phase("clip"):
        state.scaler.unscale_(state.optimizer)
        norm = gather_full_tensor(
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.grad_clip or math.inf)
        )
    total = state.group.all_reduce_sum(torch.stack(micro_losses).sum())
    return torch.stack([total, norm]), micro_losses


def advance(state: TrainState, config: TrainConfig) -> None:
    """Count a step and the windows of its batch."""
    state.step += 1
    state.samples += config.batch_sequences


def skip_step(state: TrainState, config: TrainConfig) -> None:
    """Continue after the batch of a step that made no update."""
    state.skipped_steps.append(state.step)
    if state.scaler.is_enabled():
        state.scaler.update()
    advance(state, config)


class PendingSteps:
    """The steps since metrics were last read; the same on every rank."""

    def __init__(self, state: TrainState, config: TrainConfig) -> None:
        self.state, self.config = state, config
        self.steps: list[PendingStep] = []
        self.first_started = 0.0

    def start_clock(self) -> None:
        """Start the clock before the first step; it runs until the metrics are read."""
        if not self.steps:
            self.first_started = time.monotonic()

    def must_flush(self) -> bool:
        """Return True at a step that writes a row, and at every step if nothing defers updates on the device."""
        return self.state.found_nonfinite is None or self.state.step % self.config.tracking.log_every == 0

    def flush(self) -> Iterator[tuple[StepMetrics, float]]:
        """Wait for the device and yield each step's metrics and seconds, with `state` counted to after that step.

        The first step that is not finite is the last to be yielded, with `state` counted to before it.
        """
        steps, self.steps = self.steps, []
        metrics_of_steps = read_metrics(steps) if steps else []
        seconds = (time.monotonic() - self.first_started) / max(1, len(steps))
        for step, metrics in zip(steps, metrics_of_steps, strict=True):
            self.state.step, self.state.samples = step.step, step.samples
            if not metrics.finite:
                self.clear_nonfinite(step)
                yield metrics, seconds
                return
            advance(self.state, self.config)
            yield metrics, seconds

    def clear_nonfinite(self, step: PendingStep) -> None:
        """Let the optimizer make updates again after a step that was not finite."""
        if self.state.found_nonfinite is not None:
            self.state.found_nonfinite.zero_()
            if step.first_update:  # the state it made is all zeros
                self.state.optimizer.state.clear()
