"""One optimizer step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt.config import TrainConfig
from nanogpt.data.batches import Batch
from nanogpt.data.sampler import seed_of
from nanogpt.optim.schedule import lr_scale
from nanogpt.training.state import TrainState


@dataclass(frozen=True)
class StepMetrics:
    """What a step found out; tensors stay on the device until somebody reads them."""

    loss: Tensor
    """Mean over all tokens of the step, nats per token, before the update."""
    grad_norm: Tensor
    """Global norm before clipping."""
    lr: float


def train_step(state: TrainState, micro_batches: Iterable[Batch], config: TrainConfig) -> StepMetrics:
    """One step on the mean loss of all micro-batches; advances `state`.

    Dropout is keyed by (seed, step, micro-batch), so it depends on nothing that happened before.
    """
    lr = config.optimizer.lr * lr_scale(state.step, state.steps, config.schedule)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    loss = torch.zeros((), device=state.compute.device)
    for number, (x, y) in enumerate(micro_batches):
        if config.model.dropout:
            torch.manual_seed(seed_of(config.training.seed, "dropout", state.step, number))
        with state.compute.autocast():
            micro_loss = state.forward(x, y) / config.training.batch_tokens
        state.scaler.scale(micro_loss).backward()
        loss += micro_loss.detach()
    state.scaler.unscale_(state.optimizer)
    grad_norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.grad_clip or math.inf)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.samples += config.batch_sequences
    return StepMetrics(loss, grad_norm, lr)
