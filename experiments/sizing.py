"""`nanogpt sizing`: parameters, FLOPs, memory, time and cost of a training, calculated without running it."""

import logging
from collections.abc import Iterator

from nanogpt import schema
from nanogpt.config import Gpu, ModelConfig, Precision, SizingConfig, check_warmup_fits, divisors
from nanogpt.console import print_text
from nanogpt.data.dataset import expected_vocab_size
from nanogpt.estimates.flops import compute_total_steps, flops_per_token, forward_flops, parameter_counts
from nanogpt.estimates.gpu_specs import GPU_SPECS, GpuSpec
from nanogpt.estimates.memory import USABLE_SHARE, checkpoint_bytes, estimate_memory, largest_micro_batch
from nanogpt.formatting import format_count, format_duration, format_table

logger = logging.getLogger(__name__)


def print_sizing(config: SizingConfig) -> int:
    """Print four tables. Return 0."""
    vocab_size, sure = expected_vocab_size(config.data)
    model = config.model.with_vocab(vocab_size)
    steps = compute_total_steps(config, model)
    schema.run_check(lambda: check_warmup_fits(config, steps))
    if not sure and config.model.vocab_size is None:
        logger.info(f"a vocabulary of {vocab_size} is assumed until the data is prepared")
    print_text(parameter_table(config.model.name, model))
    print_text()
    print_text(flops_table(model))
    print_text()
    print_text(memory_table(config, model))
    print_text()
    print_text(device_table(config, model, steps * config.training.batch_tokens))
    return 0


def parameter_table(name: str, model: ModelConfig) -> str:
    counts = parameter_counts(model)
    rows = [(part, f"{count:,}", f"{count / counts['total']:.1%}") for part, count in counts.items()]
    return format_table(f"{name}: parameters", ("part", "parameters", "share"), rows)


def flops_table(model: ModelConfig) -> str:
    """Return the FLOPs of one sequence, and how close the formula used for MFU is to them."""
    flops = forward_flops(model)
    rows = [(part, f"{count:,.0f}", f"{count / flops['total']:.1%}") for part, count in flops.items()]
    whole, formula = 3 * flops["total"], flops_per_token(model) * model.block_size
    rows += [
        ("forward and backward", f"{whole:,.0f}", ""),
        ("6 N + 12 L C T, times T", f"{formula:,.0f}", f"{formula / whole:.4f} of it"),
    ]
    return format_table(f"forward FLOPs of a sequence of {model.block_size:,} tokens", ("part", "FLOPs", "share"), rows)


def memory_table(config: SizingConfig, model: ModelConfig) -> str:
    """Return the memory of each device with the config's micro-batch."""
    world = config.hardware.devices or 1
    precision = precision_on(config, None)
    micro = config.micro_batch_size(world)
    memory = estimate_memory(config, model, precision, micro, True, world)
    kinds = [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer's state", memory.optimizer_state),
        (f"activations of {micro} x {model.block_size:,} tokens in {precision}", memory.activations),
        ("loss", memory.loss),
        *([("the optimizer's step, after those two", memory.optimizer_step)] if memory.optimizer_step else []),
        ("total", memory.total),
    ]
    rows = [(kind, f"{format_count(count, 'G')}B", f"{count / memory.total:.1%}") for kind, count in kinds]
    rows.append(
        ("the copy that is saved, in the machine's memory", f"{format_count(memory.checkpoint_copy, 'G')}B", "")
    )
    rows.append(("a checkpoint, on disk", f"{format_count(checkpoint_bytes(model, config.optimizer.name), 'G')}B", ""))
    return format_table("memory of a device, estimated", ("kind", "size", "share"), rows)


def precision_on(config: SizingConfig, device: GpuSpec | None) -> Precision:
    """Return what `hardware.precision` becomes on a GPU."""
    if config.hardware.precision != "auto":
        return config.hardware.precision
    return "bf16" if device is None else device.precision


def device_table(config: SizingConfig, model: ModelConfig, tokens: int) -> str:
    """Return, for each GPU, whether it fits, how long the training takes, and its cost."""
    world, settings = config.hardware.devices or 1, config.sizing
    flops = tokens * flops_per_token(model)
    each = f"{world} GPUs" if world > 1 else "one GPU"
    title = f"{format_count(tokens)} tokens, {flops:.3g} FLOPs, on {each} at an assumed MFU of {settings.mfu:.0%}"
    columns = ["GPU", "memory", "micro-batch", "time", "GPU-hours", *(["cost"] if settings.price else [])]
    return format_table(title, columns, device_rows(config, model, flops, world))


def device_rows(config: SizingConfig, model: ModelConfig, flops: float, world: int) -> Iterator[list[str]]:
    settings, sizes = config.sizing, divisors(config.batch_sequences // world)
    chosen: list[Gpu] = [settings.gpu] if settings.gpu else list(GPU_SPECS)
    for name in chosen:
        device = GPU_SPECS[name]
        precision = precision_on(config, device)
        largest = largest_micro_batch(
            sizes,
            USABLE_SHARE * device.memory,
            lambda n, p=precision: estimate_memory(config, model, p, n, True, world).total,
        )
        row = [name, f"{device.gigabytes:g} GB", f"up to {largest}" if largest else "doesn't fit"]
        if precision == "fp32" or (precision == "bf16" and not device.bf16):
            yield [*row, f"no peak for {precision} is known", ""]
        elif largest:
            hours = flops / (settings.mfu * device.tflops * 1e12) / 3600
            cost = [f"${hours * settings.price:,.2f}"] if settings.price else []
            yield [*row, format_duration(hours * 3600 / world), f"{hours:,.1f}", *cost]
        else:
            yield row
