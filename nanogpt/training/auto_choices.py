"""Describe what `auto` in `hardware` chose on this device, and keep a continued run's micro-batch."""

from nanogpt.config import TrainConfig
from nanogpt.cuda_driver import explain_no_cuda
from nanogpt.device import Compute, attention_used
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.run_directory import locate, newest_step
from nanogpt.run_identity import read_starts
from nanogpt.training.state import is_compiled

MUST_MATCH = ("ranks", "precision", "fp8", "strategy", "compile", "compile_mode", "activation_checkpointing")
"""Facts of a run on which the largest micro-batch depends, besides the model and the device."""


def describe_choices(config: TrainConfig, compute: Compute) -> list[str]:
    """Return lines that say what was chosen for a GPU, why, and how to choose otherwise. On a CPU there is nothing to
    say, unless a GPU is here that torch can't use.
    """
    asked = compute.asked
    if compute.device.type != "cuda":
        why = explain_no_cuda() if asked.device == "auto" else ""
        return [f"warning: on the CPU, though {why}; without this warning: hardware.device=cpu"] if why else []
    chosen: list[tuple[str, str]] = []
    if asked.precision == "auto":
        why = "the GPU has it" if compute.precision == "bf16" else "the GPU has no bf16"
        chosen.append((f"{compute.precision} ({why})", "hardware.precision=fp32"))
    if asked.compile == "auto" and is_compiled(config.hardware, compute):
        chosen.append(("compiled (a compiler, Python.h and Triton are here)", "hardware.compile=false"))
    if asked.attention == "auto" and not config.model.dropout:
        kernel = attention_used("auto", compute, config.model)
        chosen.append((f"{kernel} attention (the fastest that takes this model here)", "hardware.attention=math"))
    if asked.micro_batch_size == "auto":
        size = config.hardware.micro_batch_size
        chosen.append((f"micro-batches of {size} (the most that fit, or the run's own)", "hardware.micro_batch_size=8"))
    lines = [f"note    not compiled: {compute.missing}; without this note: hardware.compile=false"]
    lines = lines if compute.missing else []
    if chosen:
        lines.append(f"choice  {', '.join(what for what, _ in chosen)}")
        lines.append(f"note    to choose otherwise: {' '.join(other for _, other in chosen)}")
    return lines


def reuse_micro_batch_size(config: TrainConfig, compute: Compute, group: ProcessGroup, world: int) -> TrainConfig:
    """Return the config with `auto` replaced by the micro-batch of the run it continues, on a device of the same kind.

    The largest that fits may differ from start to start, and with it the rounding: a run that was stopped would not
    give the bits of one that never was.
    """
    if config.hardware.micro_batch_size != "auto":
        return config
    found = group.broadcast_from_rank0(lambda: read_micro_batch_size(config, compute, world))
    return config if found is None else config.with_micro_batch_size(found)


def read_micro_batch_size(config: TrainConfig, compute: Compute, world: int) -> int | None:
    """Return the micro-batch with which the run got to its newest checkpoint, if it was computed as it will be now."""
    path, hardware = locate(config), config.hardware
    now = {"ranks": world, "precision": compute.precision, "compile": is_compiled(hardware, compute)}
    now |= {key: getattr(hardware, key) for key in MUST_MATCH if key not in now}
    newest = newest_step(path)
    for start in reversed(read_starts(path)):
        facts, step = start.get("arithmetic"), start.get("from_step")
        if not isinstance(facts, dict) or not isinstance(step, int) or step >= newest:
            continue  # it saved nothing: perhaps its micro-batch was too large
        size = facts.get("micro_batch_size")
        alike = start.get("device") == compute.name and all(facts.get(key, now[key]) == now[key] for key in MUST_MATCH)
        fits = isinstance(size, int) and size > 0 and config.batch_sequences // world % size == 0
        return size if alike and fits else None
    return None
