"""What only trying tells: how fast this device trains, and which micro-batch still fits beside the training state."""

import gc
import time
from collections.abc import Sequence

import torch

from nanogpt.config import ModelConfig, TrainConfig, divisors
from nanogpt.device import Compute, attention_used, available_bytes, memory_bytes
from nanogpt.distributed import Peers
from nanogpt.errors import BadEnvironment
from nanogpt.model.cost import flops_per_token
from nanogpt.model.devices import peak_flops
from nanogpt.model.gpt import GPT
from nanogpt.model.memory import ROOM, largest_micro_batch, memory_of
from nanogpt.tracking.console import amount, say
from nanogpt.training.plan import MFU, Machine, Plan, Rate
from nanogpt.training.state import TrainState, build_state

MEASURED_FLOPS = 5e9  # of one pass when measuring: tens of milliseconds on a CPU core
MEASURED_SECONDS = 0.3
SPARE_CPU = 160 * 2**20  # trainings of micro-batches of 155 and 297 MB took 110 and 174 MB more than these


def plan_of(config: TrainConfig, model: ModelConfig, compute: Compute, world: int, sure: bool = True) -> Plan:
    """The plan of a training here. On a device whose peak isn't known its speed is measured, for a moment."""
    threads = f", {compute.threads}" if compute.device.type == "cpu" and compute.threads else ""
    attention = attention_used(config.hardware.attention, compute, model)
    machine = Machine(
        where=f"{compute.device} ({compute.name}), {compute.precision}{threads}, {attention} attention",
        gpu=compute.device.type != "cpu",
        precision=compute.precision,
        memory=memory_bytes(compute.device),
        rate=rate_of(compute, model, config.micro_batch_size(world)),
    )
    return Plan(config, model, world, machine, sure)


def rate_of(compute: Compute, model: ModelConfig, sequences: int) -> Rate:
    """An assumed share of the device's peak where that is known, else measured."""
    peak = peak_flops(compute.name, compute.precision)
    return Rate(MFU * peak, f"{MFU:.0%} of its peak, assumed") if peak else measured_rate(compute, model, sequences)


def measured_rate(compute: Compute, model: ModelConfig, sequences: int) -> Rate:
    """FLOP/s of the fastest of some forward and backward passes: of the micro-batch, or of as few of its sequences, of
    the model's layers and of 128 positions or more as make a pass of about MEASURED_FLOPS. About half a second.
    """
    whole = flops_per_token(model) * model.block_size
    sequences = min(sequences, max(1, int(MEASURED_FLOPS / whole)))
    layers = min(model.n_layer, max(1, int(model.n_layer * MEASURED_FLOPS / whole)))
    part = model.model_copy(update={"n_layer": layers})
    length = int(MEASURED_FLOPS / flops_per_token(part))
    part = part.model_copy(update={"block_size": min(model.block_size, max(128, length))})
    network = GPT(part).to(compute.device)
    forward_backward(network, compute, sequences)  # to warm up
    durations: list[float] = []
    while len(durations) < 2 or sum(durations) < MEASURED_SECONDS:
        started = time.perf_counter()
        forward_backward(network, compute, sequences)
        durations.append(time.perf_counter() - started)
    rate = sequences * part.block_size * flops_per_token(part) / min(durations)
    of = f"{sequences} x {part.block_size} tokens" + (f" of {layers} layers" if layers < model.n_layer else "")
    return Rate(rate, f"measured here on {of}, forward and backward")


def forward_backward(model: GPT, compute: Compute, sequences: int) -> None:
    """A training micro-batch of ids of no meaning; gradients add up in the parameters."""
    ids = torch.zeros(sequences, model.config.block_size, dtype=torch.int64, device=compute.device)
    keys = ids[:, 0] if model.config.dropout else None
    with compute.autocast():
        loss = model(ids, ids, keys=keys)
    loss.backward()
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)


def settled(config: TrainConfig, model: ModelConfig, compute: Compute, peers: Peers, world: int) -> TrainConfig:
    """The config with `hardware.micro_batch_size=auto` replaced by what fits on every rank. Raises BadEnvironment.

    On a GPU the largest that fits is found by trying, with weights in shards by estimate. On a CPU larger is not
    faster, so it is what null would mean, or less where the memory that is free is not enough for that by estimate.
    """
    if config.hardware.micro_batch_size != "auto":
        return config
    sizes = divisors(config.batch_sequences // world)
    if compute.device.type != "cuda":
        sizes = [n for n in sizes if n <= config.micro_batch_size(world)]
        found = -peers.agree(-(largest_by_estimate(config, model, compute, sizes, world) or 1))
    elif config.hardware.strategy == "fsdp":
        found = largest_by_estimate(config, model, compute, sizes, world)
    else:
        found = largest_fitting(config, model, compute, sizes, peers)
    if found is None:
        raise BadEnvironment(f"hardware.micro_batch_size=auto: {nothing_fits(config, model, compute, world)}")
    return config.with_micro_batch_size(found)


def largest_by_estimate(
    config: TrainConfig, model: ModelConfig, compute: Compute, sizes: Sequence[int], world: int
) -> int | None:
    """Return the largest of ascending `sizes` for which there is memory: on a GPU most of it, on a CPU what is free."""
    gpu, free = compute.device.type != "cpu", available_bytes()
    there = ROOM * (memory_bytes(compute.device) or 0) if gpu else free
    if not there:
        return sizes[-1]

    def needed(sequences: int) -> int:
        memory = memory_of(config, model, compute.precision, sequences, gpu, world)
        return memory.total if gpu else memory.of_machine(world) - world * memory.process  # these run already

    return largest_micro_batch(sizes, there, needed)


def largest_fitting(
    config: TrainConfig, model: ModelConfig, compute: Compute, sizes: Sequence[int], peers: Peers | None = None
) -> int | None:
    """The largest of ascending `sizes` whose forward and backward pass fit on every rank beside weights, gradients and
    moments, with some to spare, by bisection; None when none does. All memory it took is free again.
    """
    peers = peers or Peers()
    free_all(compute)
    state = training_state(config, model, compute)
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        failed = state is None or not fits(config, state, sizes[middle])
        if peers.agree(int(failed)):
            high = middle
        else:
            low = middle + 1
    state = None
    free_all(compute)
    return sizes[low - 1] if low else None


def training_state(config: TrainConfig, model: ModelConfig, compute: Compute) -> TrainState | None:
    """A state of its own with gradients and moments in place, or None when that alone doesn't fit."""
    try:
        state = build_state(config, model, compute)
        for parameter in state.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        state.optimizer.step()
        return state
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None


def fits(config: TrainConfig, state: TrainState, sequences: int) -> bool:
    """Return whether a micro-batch of this size gets through while a tenth of what it takes lies idle, and where
    everything is in one memory the copy that is saved and SPARE_CPU: for evaluations, pictures, gaps between tensors.
    """
    gpu = state.compute.device.type != "cpu"
    memory = memory_of(config, state.model.config, state.compute.precision, sequences, gpu)
    idle = (memory.total - memory.process) // 10 + (0 if gpu else memory.copy + SPARE_CPU)
    try:
        spare = torch.empty(idle, dtype=torch.uint8, device=state.compute.device)
        forward_backward(state.model, state.compute, sequences)
        del spare
        return True
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        free_all(state.compute)


def free_all(compute: Compute) -> None:
    """Give back what nothing refers to any more; a traceback and its frames may be a circle."""
    gc.collect()
    if compute.device.type == "cuda":
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what it means; the CPU's allocators raise a plain RuntimeError."""
    words = ("can't allocate memory", "bad_alloc", "could not create a memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def advice(config: TrainConfig, model: ModelConfig, compute: Compute, world: int) -> BadEnvironment:
    """The error of a training that ran out of memory, naming the largest micro-batch that fits here."""
    tried, sizes = config.hardware.micro_batch_size, divisors(config.batch_sequences // world)
    if tried != "auto":
        tried = config.micro_batch_size(world)
        sizes = [n for n in sizes if n < tried]
    say(f"out of memory with hardware.micro_batch_size={tried}; looking for one that fits")
    sharded = config.hardware.strategy == "fsdp"
    found = (
        largest_by_estimate(config, model, compute, sizes, world)
        if sharded
        else largest_fitting(config, model, compute, sizes)
    )
    what = (
        f"the largest that fits here{' by estimate' if sharded else ''} is hardware.micro_batch_size={found} "
        "(the loss curve doesn't change)"
        if found
        else nothing_fits(config, model, compute, world)
    )
    return BadEnvironment(f"hardware.micro_batch_size={tried}: out of memory; {what}")


def nothing_fits(config: TrainConfig, model: ModelConfig, compute: Compute, world: int) -> str:
    """What the model needs, where one sequence is too much."""
    memory = memory_of(config, model, compute.precision, 1, compute.device.type != "cpu", world)
    state, one = amount(memory.state, "G"), amount(memory.activations + memory.loss, "G")
    needs = f"{state}B for weights, gradients and optimizer state, and {one}B for one sequence"
    return f"not even 1 fits: the model needs {needs}"
