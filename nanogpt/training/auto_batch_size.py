"""The largest micro-batch that fits, and the speed of this device, both found by trying."""

import gc
import logging
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from nanogpt.config import ModelConfig, TrainConfig, divisors
from nanogpt.device import Compute, attention_used, available_bytes, memory_bytes
from nanogpt.distributed.process_group import ProcessGroup, ddp_gradient_sync
from nanogpt.errors import BadEnvironment
from nanogpt.estimates.flops import flops_per_token
from nanogpt.estimates.gpu_specs import peak_flops
from nanogpt.estimates.memory import USABLE_SHARE, estimate_memory, largest_micro_batch
from nanogpt.estimates.plan import MFU, Machine, Plan, Rate
from nanogpt.formatting import format_count
from nanogpt.model.gpt import GPT
from nanogpt.training.state import TrainState, build_state

logger = logging.getLogger(__name__)

MEASURED_FLOPS = 5e9  # of one measured pass, which takes tens of milliseconds on a CPU core
MEASURED_SECONDS = 0.3
SPARE_CPU = 160 * 2**20  # bytes; measured: micro-batches of 155 and 297 MB needed 110 and 174 MB more than these


def build_plan(config: TrainConfig, model: ModelConfig, compute: Compute, world: int, sure: bool = True) -> Plan:
    """Return the plan of a training on this device. Measures the speed of a device without a known peak."""
    threads = f", {compute.threads}" if compute.device.type == "cpu" and compute.threads else ""
    attention = attention_used(config.hardware.attention, compute, model)
    machine = Machine(
        where=f"{compute.device} ({compute.name}), {compute.precision}{threads}, {attention} attention",
        gpu=compute.device.type != "cpu",
        precision=compute.precision,
        memory=memory_bytes(compute.device),
        rate=estimate_rate(compute, model, config.micro_batch_size(world)),
        name=compute.name,
    )
    return Plan(config, model, world, machine, sure)


def estimate_rate(compute: Compute, model: ModelConfig, sequences: int) -> Rate:
    """Return an assumed share of the device's peak FLOP/s if that is known, else measure the rate."""
    peak = peak_flops(compute.name, compute.precision)
    return Rate(MFU * peak, f"{MFU:.0%} of its peak, assumed") if peak else measure_rate(compute, model, sequences)


def measure_rate(compute: Compute, model: ModelConfig, sequences: int) -> Rate:
    """Measure FLOP/s of the fastest of several forward and backward passes, in about half a second.

    Fewer sequences, layers and positions (128 at least) are used if a pass would exceed MEASURED_FLOPS.
    """
    whole = flops_per_token(model) * model.block_size
    sequences = min(sequences, max(1, int(MEASURED_FLOPS / whole)))
    layers = min(model.n_layer, max(1, int(model.n_layer * MEASURED_FLOPS / whole)))
    part = model.model_copy(update={"n_layer": layers})
    length = int(MEASURED_FLOPS / flops_per_token(part))
    part = part.model_copy(update={"block_size": min(model.block_size, max(128, length))})
    network = GPT(part).to(compute.device)
    run_micro_batch(network, part, compute, sequences)  # warm-up
    durations: list[float] = []
    while len(durations) < 2 or sum(durations) < MEASURED_SECONDS:
        started = time.perf_counter()
        run_micro_batch(network, part, compute, sequences)
        durations.append(time.perf_counter() - started)
    rate = sequences * part.block_size * flops_per_token(part) / min(durations)
    of = f"{sequences} x {part.block_size} tokens" + (f" of {layers} layers" if layers < model.n_layer else "")
    return Rate(rate, f"measured here on {of}, forward and backward")


def run_micro_batch(forward: nn.Module, model: ModelConfig, compute: Compute, sequences: int) -> None:
    """Run forward and backward on a micro-batch of zeros; gradients add up in the parameters."""
    ids = torch.zeros(sequences, model.block_size, dtype=torch.int64, device=compute.device)
    keys = ids[:, 0] if model.dropout else None
    with compute.autocast():
        loss = forward(ids, ids, keys=keys)
    loss.backward()
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)


def resolve_micro_batch_size(
    config: TrainConfig,
    model: ModelConfig,
    compute: Compute,
    group: ProcessGroup,
    world: int,
    too_large: int | None = None,
) -> TrainConfig:
    """Return the config with `hardware.micro_batch_size=auto` replaced by what fits on every rank, below `too_large`.

    On a GPU it is the largest of `TrainConfig.auto_micro_batch_sizes` that fits, found by trying, or by estimate for
    sharded weights. On a CPU, where larger is not faster, it is the size for null, or less if by estimate the free
    memory is not enough. Raises BadEnvironment if nothing fits.
    """
    if config.hardware.micro_batch_size != "auto":
        return config
    sizes = [n for n in config.auto_micro_batch_sizes(world) if too_large is None or n < too_large]
    if compute.device.type != "cuda":
        sizes = [n for n in sizes if n <= config.micro_batch_size(world)]
        found = -group.all_reduce_max(-(find_largest_by_estimate(config, model, compute, sizes, world) or 1))
    elif config.hardware.strategy == "fsdp":
        found = find_largest_by_estimate(config, model, compute, sizes, world)
    else:
        found = find_largest_by_trial(config, model, compute, sizes, group)
    if found is None:
        raise BadEnvironment(f"hardware.micro_batch_size=auto: {describe_shortage(config, model, compute, world)}")
    return config.with_micro_batch_size(found)


def find_largest_by_estimate(
    config: TrainConfig, model: ModelConfig, compute: Compute, sizes: Sequence[int], world: int
) -> int | None:
    """Return the largest of ascending `sizes` that fits by estimate, into most of a GPU or the free memory of a CPU."""
    gpu, free = compute.device.type != "cpu", available_bytes()
    there = USABLE_SHARE * (memory_bytes(compute.device) or 0) if gpu else free
    if not there or not sizes:
        return max(sizes, default=None)

    def estimate_bytes(sequences: int) -> int:
        memory = estimate_memory(config, model, compute.precision, sequences, gpu, world)
        return memory.total if gpu else memory.host_bytes(world) - world * memory.process  # these run already

    return largest_micro_batch(sizes, there, estimate_bytes)


def find_largest_by_trial(
    config: TrainConfig, model: ModelConfig, compute: Compute, sizes: Sequence[int], group: ProcessGroup | None = None
) -> int | None:
    """Return the largest of ascending `sizes` that fits on every rank next to the training state, or None.

    The eager model is tried by bisection, because compiling for each size would take long. From the size found, the
    compiled model is tried with decreasing sizes until it fits. All memory is freed afterwards.
    """
    group = group or ProcessGroup()
    free_memory(compute)
    state = try_build_state(config, model, compute)

    def fails(sequences: int, forward: nn.Module | None) -> int:
        return group.all_reduce_max(
            int(state is None or forward is None or not fits_in_memory(config, state, sequences, forward))
        )

    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        if fails(sizes[middle], state and state.model):
            high = middle
        else:
            low = middle + 1
    if compute.compiles:
        while low and fails(sizes[low - 1], state and state.forward):
            low -= 1
    state = None
    free_memory(compute)
    return sizes[low - 1] if low else None


def try_build_state(config: TrainConfig, model: ModelConfig, compute: Compute) -> TrainState | None:
    """Return a training state with gradients and moments allocated, or None if it does not fit."""
    try:
        state = build_state(config, model, compute)
        for parameter in state.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        state.optimizer.step()
        return state
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def fits_in_memory(config: TrainConfig, state: TrainState, sequences: int, forward: nn.Module) -> bool:
    """Return whether a micro-batch of this size passes through `forward` while a reserve is allocated.

    The reserve, for evaluations, plots and fragmentation, is a tenth of the estimate; on a CPU also the copy that is
    saved and SPARE_CPU.
    """
    model, compute = state.model.config, state.compute
    gpu = compute.device.type != "cpu"
    memory = estimate_memory(config, model, compute.precision, sequences, gpu, state.group.world)
    idle = (memory.total - memory.process) // 10 + (0 if gpu else memory.checkpoint_copy + SPARE_CPU)
    idle += 0 if state.optimizer.state else memory.optimizer_state
    try:
        spare = torch.empty(idle, dtype=torch.uint8, device=compute.device)
        for _ in range(3 if state.cuda_graphs else 1):  # CUDA graphs are recorded in the second run
            if state.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()
            run_micro_batch(forward, model, compute, sequences)
        del spare
        return True
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        free_memory(compute)


class DidNotFit(MemoryError):
    """A micro-batch that `auto` chose ran out of memory. `everywhere`: all ranks know, so they can go on together."""

    def __init__(self, sequences: int, everywhere: bool = True) -> None:
        super().__init__(sequences)
        self.sequences, self.everywhere = sequences, everywhere


def check_micro_batch_fits(config: TrainConfig, state: TrainState) -> None:
    """Run a micro-batch of the size that `auto` chose through the very program that is trained, before the first step.

    Raises DidNotFit, on all ranks, if it does not fit on one of them: they exchange no gradients, so that none waits
    in vain for another. (Weights in shards are exchanged; there a lack of memory is the same on all ranks.)
    """
    if not needs_fit_check(state):
        return
    size = config.micro_batch_size(state.group.world)
    with ddp_gradient_sync(state.forward, last=False):
        failed = not fits_in_memory(config, state, size, state.forward)
    state.clear_gradients()
    if state.group.all_reduce_max(int(failed)):
        raise DidNotFit(size)


def needs_fit_check(state: TrainState) -> bool:
    """Return whether the micro-batch is one that `auto` chose for a GPU."""
    return is_auto(state.compute) and state.compute.device.type == "cuda"


def is_auto(compute: Compute) -> bool:
    """Return whether the user left the micro-batch to `auto`."""
    return compute.requested.micro_batch_size == "auto"


@contextmanager
def raise_did_not_fit(config: TrainConfig, compute: Compute, everywhere: bool) -> Generator[None, None, None]:
    """Raise DidNotFit if `auto`'s micro-batch runs out of memory inside."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        size = config.hardware.micro_batch_size
        if isinstance(error, DidNotFit) or not (is_out_of_memory(error) and is_auto(compute) and isinstance(size, int)):
            raise
        raise DidNotFit(size, everywhere) from None


def free_memory(compute: Compute) -> None:
    """Free unreferenced memory, including reference cycles of a traceback and its frames."""
    gc.collect()
    if compute.device.type == "cuda":
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory; allocators of the CPU raise a plain RuntimeError."""
    words = ("can't allocate memory", "bad_alloc", "could not create a memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def out_of_memory_error(config: TrainConfig, model: ModelConfig, compute: Compute, world: int) -> BadEnvironment:
    """Return the error for a training that ran out of memory, naming the largest micro-batch that fits."""
    tried, sizes = config.hardware.micro_batch_size, divisors(config.batch_sequences // world)
    if tried != "auto":
        tried = config.micro_batch_size(world)
        sizes = [n for n in sizes if n < tried]
    logger.info(f"out of memory with hardware.micro_batch_size={tried}; looking for one that fits")
    sharded = config.hardware.strategy == "fsdp"
    found = (
        find_largest_by_estimate(config, model, compute, sizes, world)
        if sharded
        else find_largest_by_trial(config, model, compute, sizes)
    )
    what = (
        f"the largest that fits here{' by estimate' if sharded else ''} is hardware.micro_batch_size={found} "
        "(the loss curve doesn't change)"
        if found
        else describe_shortage(config, model, compute, world)
    )
    return BadEnvironment(f"hardware.micro_batch_size={tried}: out of memory; {what}")


def describe_shortage(config: TrainConfig, model: ModelConfig, compute: Compute, world: int) -> str:
    """Return how much memory a model needs for which not even one sequence fits."""
    memory = estimate_memory(config, model, compute.precision, 1, compute.device.type != "cpu", world)
    state, one = format_count(memory.state, "G"), format_count(memory.activations + memory.loss, "G")
    needs = f"{state}B for weights, gradients and optimizer state, and {one}B for one sequence"
    return f"not even 1 fits: the model needs {needs}"
