"""Random tokens for all compared programs, and this program's training step and generation. B batch, T time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nanogpt.benchmark.measurement import Workload
from nanogpt.config import TrainConfig
from nanogpt.data.batches import Batch
from nanogpt.device import DTYPES, Compute
from nanogpt.generation.cpu_decode import speed_up_cpu_decoding
from nanogpt.generation.decode import SamplingParams, generate
from nanogpt.model.gpt import GPT
from nanogpt.training.fused_step import FusedStep
from nanogpt.training.state import TrainState, build_state
from nanogpt.training.step import Phase, train_step

Batches = list[Batch]
Trainer = tuple[nn.Module, Callable[[Phase], object]]
"""A model, and a function that trains it for one step; its argument times the phases."""
Generator = tuple[nn.Module, Callable[[int], object]]
"""A model, and a function that generates a number of tokens for each prompt."""


def random_batches(workload: Workload, device: torch.device) -> Batches:
    """Return the micro-batches of a step; ids and targets are (B, T)."""
    model = workload.config.model
    source = torch.Generator().manual_seed(workload.config.training.seed)
    shape = (workload.config.grad_accum(), workload.batch, model.block_size + 1)
    ids = torch.randint(model.vocab_size or 0, shape, generator=source).to(device)
    keys = torch.arange(workload.batch, device=device) if model.dropout else None
    return [Batch(row[:, :-1].contiguous(), row[:, 1:].contiguous(), keys) for row in ids]


def random_prompts(workload: Workload, device: torch.device) -> Tensor:
    """Return (B, T) ids."""
    source = torch.Generator().manual_seed(workload.config.training.seed)
    shape = (workload.batch, workload.config.bench.prompt_tokens)
    return torch.randint(workload.config.model.vocab_size or 0, shape, generator=source).to(device)


def build_trainer(workload: Workload, compute: Compute, batches: Batches) -> Trainer:
    """Build the step of train.py."""
    state = build_state(workload.config, workload.config.model, compute)
    return state.model, lambda phase: train_step(state, batches, workload.config, phase)


@dataclass
class RandomLoop:
    """One of several models, on one random batch."""

    config: TrainConfig
    state: TrainState
    batches: Batches

    def micro_batches(self) -> Iterator[Batch]:
        return iter(self.batches)


def build_network_trainer(workload: Workload, compute: Compute, batches: Batches) -> Trainer:
    """Build the step of sweep.fused, with models that differ in their seed."""
    loops: list[RandomLoop] = []
    for number in range(workload.models):
        training = workload.config.training.model_copy(update={"seed": workload.config.training.seed + number})
        config = workload.config.model_copy(update={"training": training})
        loops.append(RandomLoop(config, build_state(config, config.model, replace(compute, fused=True)), batches))
    fused = FusedStep()
    return nn.ModuleList(loop.state.model for loop in loops), lambda _: fused.take_step(loops)


def build_generator(workload: Workload, compute: Compute, prompts: Tensor) -> Generator:
    """Build the decoding of sample.py, sampling from the whole distribution."""
    model = GPT(workload.config.model, workload.config.training.seed).eval().to(compute.device)
    if compute.precision == "fp32":
        speed_up_cpu_decoding(model, workload.batch)
    else:
        model.to(DTYPES[compute.precision])

    def draw(count: int) -> None:
        sources = [torch.Generator(compute.device).manual_seed(number) for number in range(workload.batch)]
        for _ in generate(model, prompts.tolist(), count, SamplingParams(), sources):
            pass

    return model, draw
