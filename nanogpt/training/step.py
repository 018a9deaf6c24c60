"""One optimizer step, on all ranks together."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt.config import TrainConfig
from nanogpt.data.batches import Batch
from nanogpt.distributed import synchronised
from nanogpt.optim.schedule import lr_scale
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
    finite: bool
    """Whether the numbers were, and so the update was made; if not, the weights are what they were."""
    parts: list[Tensor]
    """Each of this rank's micro-batches' share of the loss."""


def train_step(
    state: TrainState, micro_batches: Iterable[Batch], config: TrainConfig, phase: Phase = unobserved
) -> StepMetrics:
    """One step on the mean loss of all micro-batches of all ranks. Advances `state`, unless a number isn't finite."""
    lr = config.optimizer.lr * lr_scale(state.step, state.steps, config.schedule)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    loss, grad_norm, parts = gradients(state, micro_batches, config, phase)
    # A step of fp16 whose gradient overflows is left out by the scaler, which then halves its scale; at a scale of 1
    # it isn't the scale that overflows. A loss that isn't finite is never right.
    finite = math.isfinite(loss) and (math.isfinite(grad_norm) or state.scaler.get_scale() > 1)
    if finite:
        with phase("optimizer"):
            state.scaler.step(state.optimizer)
            state.scaler.update()
        advance(state, config)
    state.optimizer.zero_grad(set_to_none=True)
    return StepMetrics(loss, grad_norm, lr, finite, parts)


def gradients(
    state: TrainState, micro_batches: Iterable[Batch], config: TrainConfig, phase: Phase = unobserved
) -> tuple[float, float, list[Tensor]]:
    """Clipped gradients, averaged over all ranks, in the parameters. Returns (loss, norm before clipping, parts)."""
    world, per_rank = state.peers.world, config.grad_accum(state.peers.world)
    parts: list[Tensor] = []
    for number, batch in enumerate(micro_batches, 1):
        with synchronised(state.forward, last=number == per_rank), state.compute.autocast():
            with phase("forward"):
                part = state.forward(batch.ids, batch.targets, keys=batch.keys) / config.training.batch_tokens
            with phase("backward"):  # DistributedDataParallel takes the mean over ranks; these are shares of a sum
                state.scaler.scale(part * world).backward()
        parts.append(part.detach())
    with phase("clip"):
        state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.grad_clip or math.inf)
    loss = state.peers.sum(torch.stack(parts).sum())
    values = torch.stack([loss, norm]).tolist()  # waits for the device, once a step
    return values[0], values[1], parts


def advance(state: TrainState, config: TrainConfig) -> None:
    """This step's batch is done with."""
    state.step += 1
    state.samples += config.batch_sequences


def pass_over(state: TrainState, config: TrainConfig) -> None:
    """Leave out the update of the step just tried and go on after its batch."""
    state.skipped.append(state.step)
    if state.scaler.is_enabled():
        state.scaler.update()
    advance(state, config)
