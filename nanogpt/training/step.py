"""One optimizer step, on all ranks together."""

import math
from collections.abc import Callable, Iterable, Sequence
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
"""What surrounds a phase of a step, by its name: a clock or a profiler's label, for `nanogpt.benchmark`."""


def no_phase_timer(_: str) -> AbstractContextManager[None]:
    """No phase is watched."""
    return nullcontext()


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one step; all but `micro_losses` are equal on every rank."""

    loss: float
    """Mean over all tokens of the step, nats per token, before the update."""
    grad_norm: float
    """Global norm before clipping."""
    lr: float
    """optimizer.lr's; a group with a peak of its own has the same share of that."""
    finite: bool
    """Whether the numbers were, and so the update was made; if not, the weights are what they were."""
    micro_losses: list[Tensor]
    """Each of this rank's micro-batches' share of the loss."""


@dataclass(frozen=True)
class PendingStep:
    """A step that the device may not have done yet."""

    step: int
    """Steps done before it."""
    samples: int
    """Training windows seen before it."""
    first_update: bool
    """Whether the optimizer had no state before it."""
    loss_and_norm: Tensor
    """(2,), loss and norm as in StepMetrics."""
    lr: float
    scale: float
    """What fp16's scaler multiplied the loss by."""
    micro_losses: list[Tensor]

    def wait(self) -> StepMetrics:
        """Wait for the device and return the step's metrics."""
        return read_metrics([self])[0]


def read_metrics(steps: Sequence[PendingStep]) -> list[StepMetrics]:
    """The numbers of several steps, in one transfer, which waits for the device."""
    numbers = torch.stack([one.loss_and_norm for one in steps]).tolist()
    return [to_metrics(one, loss, norm) for one, (loss, norm) in zip(steps, numbers, strict=True)]


def to_metrics(one: PendingStep, loss: float, norm: float) -> StepMetrics:
    """Return the metrics of a step from its loss and gradient norm as Python numbers.

    A non-finite gradient is tolerated only under fp16 loss scaling (scale > 1); a non-finite loss never is.
    """
    finite = math.isfinite(loss) and (math.isfinite(norm) or one.scale > 1)
    return StepMetrics(loss, norm, one.lr, finite, one.micro_losses)


def train_step(
    state: TrainState, micro_batches: Iterable[Batch], config: TrainConfig, phase: Phase = no_phase_timer
) -> PendingStep:
    """One step on the mean loss of all micro-batches of all ranks. Advances `state`, whatever its numbers are.

    When one isn't finite no update is made; where `state.found_nonfinite` keeps that in mind, none later on either.
    """
    before = state.step, state.samples, not state.optimizer.state
    lr = set_rates(state.optimizer, state.step, state.total_steps, config)
    numbers, parts = forward_backward(state, micro_batches, config, phase)
    if state.found_nonfinite is None:
        numbers = numbers.cpu()  # waits for the device, once a step
    else:
        state.found_nonfinite.masked_fill_(~numbers.isfinite().all(), 1.0)  # the optimizer heeds it on the device
    unread = PendingStep(*before, numbers, lr, state.scaler.get_scale(), parts)
    if state.found_nonfinite is not None or unread.wait().finite:
        with phase("optimizer"):
            state.scaler.step(state.optimizer)
            state.scaler.update()
    state.clear_gradients()
    advance(state, config)
    return unread


def forward_backward(
    state: TrainState, micro_batches: Iterable[Batch], config: TrainConfig, phase: Phase = no_phase_timer
) -> tuple[Tensor, list[Tensor]]:
    """Clipped gradients, averaged over all ranks, in the parameters. Returns loss and norm before clipping as (2,),
    and the parts of the loss. Waits for nothing.
    """
    world, per_rank = state.group.world, config.grad_accum(state.group.world)
    parts: list[Tensor] = []
    for number, batch in enumerate(micro_batches, 1):
        set_gradient_sync(state.forward, last=number == per_rank, each=state.reduce_every_micro_batch)
        with ddp_gradient_sync(state.forward, last=number == per_rank), state.compute.autocast():
            if state.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()
            with phase("forward"):
                part = state.forward(batch.ids, batch.targets, keys=batch.keys) / config.training.batch_tokens
            with phase("backward"):  # DistributedDataParallel takes the mean over ranks; these are shares of a sum
                state.scaler.scale(part * world).backward()
        parts.append(part.detach())
    with phase("clip"):
        state.scaler.unscale_(state.optimizer)
        norm = gather_full_tensor(
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.grad_clip or math.inf)
        )
    loss = state.group.all_reduce_sum(torch.stack(parts).sum())
    return torch.stack([loss, norm]), parts


def advance(state: TrainState, config: TrainConfig) -> None:
    """This step's batch is done with."""
    state.step += 1
    state.samples += config.batch_sequences


def skip_step(state: TrainState, config: TrainConfig) -> None:
    """Go on after the batch of the step that was tried, whose update was left out."""
    state.skipped_steps.append(state.step)
    if state.scaler.is_enabled():
        state.scaler.update()
    advance(state, config)
