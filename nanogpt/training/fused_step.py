"""Steps of several models computed as one network. Each model's step equals its own up to rounding.

The models share forward and backward passes; each keeps its optimizer. On a CPU every thread computes some of the
models, with kernels that use this thread alone: that is faster, and a model's numbers don't depend on the others.
K models.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from nanogpt.config import TrainConfig
from nanogpt.data.batches import Batch
from nanogpt.model.stacked import StackedGPT
from nanogpt.optim.schedule import set_rates
from nanogpt.training.state import TrainState
from nanogpt.training.step import PendingStep, update


class OneOfSeveral(Protocol):
    """The loop of one of several models that are trained at once."""

    @property
    def config(self) -> TrainConfig: ...

    @property
    def state(self) -> TrainState: ...

    def micro_batches(self) -> Iterator[Batch]:
        """Yield the micro-batches of a step."""
        ...


class FusedStep:
    """Takes steps of several loops at once."""

    def __init__(self) -> None:
        self.loops: list[OneOfSeveral] = []
        """The loops of the last step, in its order."""
        self.stacks: list[ModelStack] = []
        self.threads: ThreadPoolExecutor | None = None

    def take_step(self, loops: Sequence[OneOfSeveral]) -> list[PendingStep]:
        """Take a step of these loops. Returns the steps in their order."""
        if not loops:
            return []
        if [id(loop) for loop in loops] != [id(loop) for loop in self.loops]:
            self.stack(loops)
        run = self.threads.map if self.threads else map
        with loops[0].state.compute.kernels():  # a setting of all threads
            done = chain.from_iterable(run(ModelStack.take_step, self.stacks))
            steps = dict(zip((id(loop) for stack in self.stacks for loop in stack.loops), done, strict=True))
        return [steps[id(loop)] for loop in loops]

    def stack(self, loops: Sequence[OneOfSeveral]) -> None:
        """Stack the weights of these loops' models, apart those with dropout, for which attention has other kernels."""
        self.close()
        cpu = loops[0].state.compute.device.type == "cpu"
        workers = min(torch.get_num_threads(), len(loops)) if cpu else 1
        dropout = [loop for loop in loops if loop.config.model.dropout]
        alike = [dropout, [loop for loop in loops if not loop.config.model.dropout]]
        parts = [part[first::workers] for part in alike for first in range(workers)]
        self.loops, self.stacks = list(loops), [ModelStack(part) for part in parts if part]
        if cpu:
            self.threads = ThreadPoolExecutor(workers, "models", torch.set_num_threads, (1,))

    def close(self) -> None:
        """End the threads."""
        if self.threads:
            self.threads.shutdown()
            self.threads = None


class ModelStack:
    """Models that one thread computes as one network."""

    def __init__(self, loops: Sequence[OneOfSeveral]) -> None:
        self.loops, first = loops, loops[0]
        self.compute, self.batch_tokens = first.state.compute, first.config.training.batch_tokens
        self.model = StackedGPT([loop.state.model for loop in loops])
        clips = [loop.config.optimizer.grad_clip or math.inf for loop in loops]
        self.grad_clips = torch.tensor(clips, device=self.compute.device) if min(clips) < math.inf else None

    def take_step(self) -> list[PendingStep]:
        """Take a step of every model."""
        rates = [
            set_rates(loop.state.optimizer, loop.state.step, loop.state.total_steps, loop.config) for loop in self.loops
        ]
        micro_losses = self.forward_backward()
        results = torch.stack([torch.stack(micro_losses).sum(0), self.clip_gradients()], dim=1)  # (K, 2)
        return [
            update(loop.state, loop.config, lr, result, losses)
            for loop, lr, result, *losses in zip(self.loops, rates, results.unbind(), *micro_losses, strict=True)
        ]

    def forward_backward(self) -> list[Tensor]:
        """Leave gradients in the stacks of parameters. Returns each micro-batch's losses, (K,)."""
        micro_losses: list[Tensor] = []
        for batches in zip(*(loop.micro_batches() for loop in self.loops), strict=True):
            ids, targets = (torch.cat(part) for part in ([b.ids for b in batches], [b.targets for b in batches]))
            keys = [b.keys for b in batches if b.keys is not None]
            with self.compute.products():
                losses = self.model(ids, targets, keys=torch.cat(keys) if keys else None) / self.batch_tokens
            losses.sum().backward()
            micro_losses.append(losses.detach())
        return micro_losses

    def clip_gradients(self) -> Tensor:
        """Clip each model's gradients to its norm, and hand them to the models. Returns the norms before, (K,).

        The arithmetic is that of torch.nn.utils.clip_grad_norm_, to the bit.
        """
        held = self.model.parameters_of
        grads = {stack: stack.grad for stack in held if stack.grad is not None}
        of_parameters = [torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads.values()]
        norms = torch.linalg.vector_norm(torch.stack(of_parameters, dim=1), dim=1)
        if self.grad_clips is not None:
            factors = ((norms + 1e-6).reciprocal() * self.grad_clips).clamp(max=1.0)
            for grad in grads.values():
                grad.mul_(factors.view(-1, *[1] * (grad.dim() - 1)))
        for stack, grad in grads.items():
            for parameter, view in zip(held[stack], grad.unbind(), strict=True):
                parameter.grad = view
            stack.grad = None
        return norms
