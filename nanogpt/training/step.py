"""One optimizer step, on all ranks together."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt.config import TrainConfig
from nanogpt.data.batches import Batch
from nanogpt.distributed.process_group import synchronised
from nanogpt.model.fsdp import gather_full_tensor, set_gradient_sync
from nanogpt.optim.schedule import set_rates
from nanogpt.training.state import TrainState

Phase = Callable[[str], AbstractContextManager[object]]
"""What surrounds a phase of a step, by its name: a clock or a profiler's label, for `nanogpt.benchmark`."""


def unobserved(_: str) -> AbstractContextManager[None]:
    """No phase is watched."""
    return nullcontext()


@dataclass(frozen=True)
class StepMetrics:
    """What a step found out, the same on every rank but for `parts`."""

    loss: float
    """Mean over all tokens of the step, nats per token, before the update."""
    grad_norm: float
    """Global norm before clipping."""
    lr: float
    """optimizer.lr's; a group with a peak of its own has the same share of that."""
    finite: bool
    """Whether the numbers were, and so the update was made; if not, the weights are what they were."""
    parts: list[Tensor]
    """Each of this rank's micro-batches' share of the loss."""


@dataclass(frozen=True)
class Unread:
    """A step that the device may not have done yet."""

    step: int
    """Steps done before it."""
    samples: int
    """Training windows seen before it."""
    first: bool
    """Whether the optimizer had no state before it."""
    numbers: Tensor
    """(2,), loss and norm as in StepMetrics."""
    lr: float
    scale: float
    """What fp16's scaler multiplied the loss by."""
    parts: list[Tensor]

    def read(self) -> StepMetrics:
        """Wait for the device."""
        return read([self])[0]


def read(steps: Sequence[Unread]) -> list[StepMetrics]:
    """The numbers of several steps, in one transfer, which waits for the device."""
    numbers = torch.stack([one.numbers for one in steps]).tolist()
    return [told(one, loss, norm) for one, (loss, norm) in zip(steps, numbers, strict=True)]


def told(one: Unread, loss: float, norm: float) -> StepMetrics:
    """A step of fp16 whose gradient overflows is left out by the scaler, which then halves its scale; at a scale of 1
    it isn't the scale that overflows. A loss that isn't finite is never right.
    """
    finite = math.isfinite(loss) and (math.isfinite(norm) or one.scale > 1)
    return StepMetrics(loss, norm, one.lr, finite, one.parts)


def train_step(
    state: TrainState, micro_batches: Iterable[Batch], config: TrainConfig, phase: Phase = unobserved
) -> Unread:
    """One step on the mean loss of all micro-batches of all ranks. Advances `state`, whatever its numbers are.

    When one isn't finite no update is made; where `state.broken` keeps that in mind, none later on either.
    """
    before = state.step, state.samples, not state.optimizer.state
    lr = set_rates(state.optimizer, state.step, state.steps, config)
    numbers, parts = gradients(state, micro_batches, config, phase)
    if state.broken is None:
        numbers = numbers.cpu()  # waits for the device, once a step
    else:
        state.broken.masked_fill_(~numbers.isfinite().all(), 1.0)  # the optimizer heeds it on the device
    unread = Unread(*before, numbers, lr, state.scaler.get_scale(), parts)
    if state.broken is not None or unread.read().finite:
        with phase("optimizer"):
            state.scaler.step(state.optimizer)
            state.scaler.update()
    state.clear_gradients()
    advance(state, config)
    return unread


def gradients(
    state: TrainState, micro_batches: Iterable[Batch], config: TrainConfig, phase: Phase = unobserved
) -> tuple[Tensor, list[Tensor]]:
    """Clipped gradients, averaged over all ranks, in the parameters. Returns loss and norm before clipping as (2,),
    and the parts of the loss. Waits for nothing.
    """
    world, per_rank = state.peers.world, config.grad_accum(state.peers.world)
    parts: list[Tensor] = []
    for number, batch in enumerate(micro_batches, 1):
        set_gradient_sync(state.forward, last=number == per_rank, each=state.reduces_each)
        with synchronised(state.forward, last=number == per_rank), state.compute.autocast():
            if state.graphs:
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
    loss = state.peers.sum(torch.stack(parts).sum())
    return torch.stack([loss, norm]), parts


def advance(state: TrainState, config: TrainConfig) -> None:
    """This step's batch is done with."""
    state.step += 1
    state.samples += config.batch_sequences


def pass_over(state: TrainState, config: TrainConfig) -> None:
    """Go on after the batch of the step that was tried, whose update was left out."""
    state.skipped.append(state.step)
    if state.scaler.is_enabled():
        state.scaler.update()
    advance(state, config)
