"""`nanogpt sizing`: parameters, FLOPs, memory, time and cost of a training, calculated without running it."""

import logging
from dataclasses import dataclass

from nanogpt import schema
from nanogpt.config import Gpu, ModelConfig, Precision, SizingConfig, check_warmup_fits, divisors
from nanogpt.console import print_text
from nanogpt.data.dataset import expected_vocab_size
from nanogpt.estimates.flops import compute_total_steps, flops_per_token, forward_flops, parameter_counts
from nanogpt.estimates.gpu_specs import GPU_SPECS, GpuSpec
from nanogpt.estimates.memory import USABLE_SHARE, Memory, checkpoint_bytes, estimate_memory, largest_micro_batch
from nanogpt.formatting import format_count, format_duration, format_table
from nanogpt.json_output import print_result

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuEstimate:
    """A training on GPUs of one kind."""

    gpu: str
    memory_bytes: int
    precision: Precision
    peak_known: bool
    """False: the GPU's peak is not known in this precision."""
    max_micro_batch_size: int | None
    """None: no micro-batch fits."""
    time_s: float | None
    """None: it does not fit, or the peak is not known."""
    gpu_hours: float | None
    """Hours times GPUs."""
    cost_dollars: float | None
    """None also without sizing.price."""


@dataclass(frozen=True)
class Sizing:
    """A training in numbers."""

    model: str
    vocab_size: int
    vocab_size_assumed: bool
    """True until the data is prepared."""
    block_size: int
    devices: int
    steps: int
    tokens: int
    flops: float
    """FLOPs of the whole training by the formula used for MFU."""
    parameters: dict[str, int]
    forward_flops: dict[str, float]
    """FLOPs of a sequence."""
    formula_flops: float
    """FLOPs of a sequence, forward and backward, by the formula used for MFU."""
    precision: Precision
    micro_batch_size: int
    memory: Memory
    """Memory of each device with that micro-batch."""
    checkpoint_bytes: int
    mfu: float
    """Assumed."""
    dollars_per_gpu_hour: float | None
    gpus: list[GpuEstimate]


def print_sizing(config: SizingConfig) -> int:
    """Print four tables. Return 0."""
    print_result(config.format, compute_sizing(config), print_tables)
    return 0


def compute_sizing(config: SizingConfig) -> Sizing:
    """Return all numbers. Raises PydanticCustomError for a warm-up that is longer than the run."""
    vocab_size, sure = expected_vocab_size(config.data)
    model = config.model.with_vocab(vocab_size)
    steps, world = compute_total_steps(config, model), config.hardware.devices or 1
    schema.run_check(lambda: check_warmup_fits(config, steps))
    tokens = steps * config.training.batch_tokens
    flops = tokens * flops_per_token(model)
    precision, micro = choose_precision(config, None), config.micro_batch_size(world)
    chosen: list[Gpu] = [config.sizing.gpu] if config.sizing.gpu else list(GPU_SPECS)
    return Sizing(
        model=config.model.name,
        vocab_size=vocab_size,
        vocab_size_assumed=not sure and config.model.vocab_size is None,
        block_size=model.block_size,
        devices=world,
        steps=steps,
        tokens=tokens,
        flops=flops,
        parameters=parameter_counts(model),
        forward_flops=forward_flops(model),
        formula_flops=flops_per_token(model) * model.block_size,
        precision=precision,
        micro_batch_size=micro,
        memory=estimate_memory(config, model, precision, micro, True, world),
        checkpoint_bytes=checkpoint_bytes(model, config.optimizer.name),
        mfu=config.sizing.mfu,
        dollars_per_gpu_hour=config.sizing.price,
        gpus=[estimate_gpu(name, config, model, flops, world) for name in chosen],
    )


def choose_precision(config: SizingConfig, device: GpuSpec | None) -> Precision:
    """Return what `hardware.precision` becomes on a GPU."""
    if config.hardware.precision != "auto":
        return config.hardware.precision
    return "bf16" if device is None else device.precision


def estimate_gpu(name: Gpu, config: SizingConfig, model: ModelConfig, flops: float, world: int) -> GpuEstimate:
    """Return whether a training fits a GPU, how long it takes, and its cost."""
    settings, device = config.sizing, GPU_SPECS[name]
    precision = choose_precision(config, device)
    largest = largest_micro_batch(
        divisors(config.batch_sequences // world),
        USABLE_SHARE * device.memory,
        lambda n: estimate_memory(config, model, precision, n, True, world).total,
    )
    hours, peak_known = None, precision == "fp16" or (precision == "bf16" and device.bf16)
    if largest and peak_known:
        hours = flops / (settings.mfu * device.tflops * 1e12) / 3600
    return GpuEstimate(
        gpu=name,
        memory_bytes=device.memory,
        precision=precision,
        peak_known=peak_known,
        max_micro_batch_size=largest,
        time_s=None if hours is None else hours * 3600 / world,
        gpu_hours=hours,
        cost_dollars=None if hours is None or settings.price is None else hours * settings.price,
    )


def print_tables(sizing: Sizing) -> None:
    """Print parameters, FLOPs, memory and GPUs."""
    if sizing.vocab_size_assumed:
        logger.info(f"a vocabulary of {sizing.vocab_size} is assumed until the data is prepared")
    tables = (parameter_table(sizing), flops_table(sizing), memory_table(sizing), device_table(sizing))
    print_text("\n\n".join(tables))


def parameter_table(sizing: Sizing) -> str:
    counts = sizing.parameters
    rows = [(part, f"{count:,}", f"{count / counts['total']:.1%}") for part, count in counts.items()]
    return format_table(f"{sizing.model}: parameters", ("part", "parameters", "share"), rows)


def flops_table(sizing: Sizing) -> str:
    """Return the FLOPs of one sequence, and how close the formula used for MFU is to them."""
    flops = sizing.forward_flops
    rows = [(part, f"{count:,.0f}", f"{count / flops['total']:.1%}") for part, count in flops.items()]
    whole, formula = 3 * flops["total"], sizing.formula_flops
    rows += [
        ("forward and backward", f"{whole:,.0f}", ""),
        ("6 N + 12 L C T, times T", f"{formula:,.0f}", f"{formula / whole:.4f} of it"),
    ]
    return format_table(
        f"forward FLOPs of a sequence of {sizing.block_size:,} tokens", ("part", "FLOPs", "share"), rows
    )


def memory_table(sizing: Sizing) -> str:
    """Return the memory of each device with the config's micro-batch."""
    memory, micro = sizing.memory, sizing.micro_batch_size
    kinds = [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer's state", memory.optimizer_state),
        (f"activations of {micro} x {sizing.block_size:,} tokens in {sizing.precision}", memory.activations),
        ("loss", memory.loss),
        *([("the optimizer's step, after those two", memory.optimizer_step)] if memory.optimizer_step else []),
        ("total", memory.total),
    ]
    rows = [(kind, f"{format_count(count, 'G')}B", f"{count / memory.total:.1%}") for kind, count in kinds]
    rows.append(
        ("the copy that is saved, in the machine's memory", f"{format_count(memory.checkpoint_copy, 'G')}B", "")
    )
    rows.append(("a checkpoint, on disk", f"{format_count(sizing.checkpoint_bytes, 'G')}B", ""))
    return format_table("memory of a device, estimated", ("kind", "size", "share"), rows)


def device_table(sizing: Sizing) -> str:
    """Return, for each GPU, whether it fits, how long the training takes, and its cost."""
    rows: list[list[str]] = []
    for found in sizing.gpus:
        largest, gigabytes = found.max_micro_batch_size, found.memory_bytes / 1e9
        row = [found.gpu, f"{gigabytes:g} GB", f"up to {largest}" if largest else "doesn't fit"]
        if found.time_s is not None:
            row += [format_duration(found.time_s), f"{found.gpu_hours:,.1f}"]
            row += [f"${found.cost_dollars:,.2f}"] if sizing.dollars_per_gpu_hour else []
        elif not found.peak_known:
            row += [f"no peak for {found.precision} is known", ""]
        rows.append(row)
    each = f"{sizing.devices} GPUs" if sizing.devices > 1 else "one GPU"
    counts = f"{format_count(sizing.tokens)} tokens, {sizing.flops:.3g} FLOPs"
    title = f"{counts}, on {each} at an assumed MFU of {sizing.mfu:.0%}"
    columns = ("GPU", "memory", "micro-batch", "time", "GPU-hours", *(["cost"] if sizing.dollars_per_gpu_hour else []))
    return format_table(title, columns, rows)
