"""Descriptions of the choices of `auto` in `hardware`, and the micro-batch size of a run that is continued."""

from nanogpt.config import TrainConfig
from nanogpt.cuda_driver import explain_no_cuda
from nanogpt.device import Compute, attention_used
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.run_directory import locate_run, newest_step
from nanogpt.run_identity import read_starts

MUST_MATCH = ("ranks", "precision", "fp8", "strategy", "compile", "compile_mode", "activation_checkpointing")
"""Settings of a run on which the largest micro-batch depends, besides model and device."""


def describe_choices(config: TrainConfig, compute: Compute) -> list[str]:
    """Return lines on what was chosen for a GPU, why, and how to choose otherwise.

    On a CPU there is one line if there is a GPU that torch cannot use, else none.
    """
    asked = compute.requested
    if compute.device.type != "cuda":
        why = explain_no_cuda() if asked.device == "auto" else ""
        return [f"warning: on the CPU, though {why}; without this warning: hardware.device=cpu"] if why else []
    chosen: list[tuple[str, str]] = []
    if asked.precision == "auto":
        why = "the GPU has it" if compute.precision == "bf16" else "the GPU has no bf16"
        chosen.append((f"{compute.precision} ({why})", "hardware.precision=fp32"))
    if asked.compile == "auto" and compute.compiles:
        chosen.append(("compiled (a compiler, Python.h and Triton are here)", "hardware.compile=false"))
    if asked.attention == "auto" and not config.model.dropout:
        kernel = attention_used("auto", compute, config.model)
        chosen.append(
            (
                f"{kernel} attention (the fastest kernel that supports this model on this device)",
                "hardware.attention=math",
            )
        )
    if asked.micro_batch_size == "auto":
        size = config.hardware.micro_batch_size
        chosen.append((f"micro-batches of {size} (the most that fit, or the run's own)", "hardware.micro_batch_size=8"))
    lines = [f"note    not compiled: {compute.compile_problem}; without this note: hardware.compile=false"]
    lines = lines if compute.compile_problem else []
    if chosen:
        lines.append(f"choice  {', '.join(what for what, _ in chosen)}")
        lines.append(f"note    to choose otherwise: {' '.join(other for _, other in chosen)}")
    return lines


def reuse_micro_batch_size(config: TrainConfig, compute: Compute, group: ProcessGroup, world: int) -> TrainConfig:
    """Return the config with `auto` replaced by the micro-batch of the run it continues, on the same kind of device.

    The largest that fits may differ from start to start. With another micro-batch rounding differs, and a resumed run
    would not equal an uninterrupted run bit for bit.
    """
    if config.hardware.micro_batch_size != "auto":
        return config
    found = group.broadcast_from_rank0(lambda: read_micro_batch_size(config, compute, world))
    return config if found is None else config.with_micro_batch_size(found)


def read_micro_batch_size(config: TrainConfig, compute: Compute, world: int) -> int | None:
    """Return the micro-batch of the start that wrote the newest checkpoint, if this start computes alike."""
    path, hardware = locate_run(config), config.hardware
    now = {"ranks": world, "precision": compute.precision, "compile": compute.compiles}
    now |= {key: getattr(hardware, key) for key in MUST_MATCH if key not in now}
    newest = newest_step(path)
    for start in reversed(read_starts(path)):
        facts, step = start.get("arithmetic"), start.get("from_step")
        if not isinstance(facts, dict) or not isinstance(step, int) or step >= newest:
            continue  # it saved nothing, perhaps because its micro-batch was too large
        size = facts.get("micro_batch_size")
        alike = start.get("device") == compute.name and all(facts.get(key, now[key]) == now[key] for key in MUST_MATCH)
        fits = isinstance(size, int) and size > 0 and config.batch_sequences // world % size == 0
        return size if alike and fits else None
    return None
