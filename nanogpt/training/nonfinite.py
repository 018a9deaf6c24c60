"""Incidents: steps with a non-finite loss or gradient, recorded with batch and state, and replayed alone.

runs/<run>/incidents/<n>/{incident.json, config.json, checkpoint/}
"""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch

from nanogpt import schema
from nanogpt.checkpoint import Tensors, load_verified, write_checkpoint
from nanogpt.config import HardwareConfig, TrainConfig
from nanogpt.data.batches import TrainBatches
from nanogpt.data.prepare import prepare_if_small
from nanogpt.device import set_up_device
from nanogpt.entry_names import parse_number
from nanogpt.errors import BadCheckpoint, BadInput, Diverged, one_line
from nanogpt.files import list_entries, read_json_bytes, write_atomic
from nanogpt.formatting import format_table
from nanogpt.training.state import TrainState, build_state
from nanogpt.training.step import StepMetrics

logger = logging.getLogger(__name__)

WITH_STATE = 3  # incidents per run with a checkpoint


def describe_incident(state: TrainState, batches: TrainBatches, metrics: StepMetrics) -> dict[str, Any]:
    """Return a JSON object about the step and the micro-batches with a non-finite loss, or all if there is none."""
    n_parts = batches.grad_accum * batches.world
    mine = [
        {
            "rank": batches.rank,
            "first_sample": first,
            "loss": str(float(part) * n_parts),
            "windows": [
                [str(batches.split.shards[shard].path), offset] for shard, offset in batches.locate_samples(first)
            ],
        }
        for first, part in zip(batches.first_samples(state.samples), metrics.micro_losses, strict=True)
    ]
    parts = [part for text in state.group.all_gather_text(json.dumps(mine)) for part in json.loads(text)]
    parts.sort(key=lambda part: part["first_sample"])
    return {
        "step": state.step + 1,
        "samples": state.samples,
        "loss": str(metrics.loss),
        "grad_norm": str(metrics.grad_norm),
        "micro_batch_size": batches.micro_batch_size,
        "ranks": state.group.world,
        "precision": state.compute.precision,
        "micro_batches": [part for part in parts if not math.isfinite(float(part["loss"]))] or parts,
    }


def copy_to_cpu(state: TrainState, write_incident: bool) -> dict[str, Tensors]:
    """Return the tensors of the state on the CPU, empty on ranks that do not write them. All ranks must call it."""
    tensors: dict[str, Tensors] = {part: {} for part in state.tensors()}  # there are no moments before the first step
    for part, key, tensor in state.gather_tensors():
        if write_incident:
            tensors[part][key] = tensor.cpu()
    return tensors


def write_incident(
    state: TrainState, tensors: dict[str, Tensors], run: Path, config: TrainConfig, about: dict[str, Any]
) -> tuple[Path, bool]:
    """Write an incident, the first ones with the state before the step. A full disk is only a warning.

    Returns the folder, and whether the state was written.
    """
    numbers = (parse_number(path.name) for path in list_entries(run / "incidents"))
    number = 1 + max((n for n in numbers if n is not None), default=-1)
    folder = run / "incidents" / str(number)
    try:
        folder.mkdir(parents=True)
        write_atomic(folder / "incident.json", json.dumps(about, indent=1) + "\n")
        write_atomic(folder / "config.json", schema.to_json(config))
        finite = all(bool(torch.isfinite(t).all()) for part in tensors.values() for t in part.values())
        if number < WITH_STATE and finite:
            partial = folder / ".tmp-checkpoint"
            write_checkpoint(partial, state.step, tensors, json.dumps(state.to_dict(), indent=1) + "\n")
            os.replace(partial, folder / "checkpoint")
    except OSError as error:
        logger.warning(f"{one_line(folder)} can't be written: {error.strerror}")
    return folder, (folder / "checkpoint").is_dir()


def replay_incident(config: TrainConfig) -> int:
    """Run the micro-batches of the incident at `config.replay` again, on one rank, and print loss and norm of each.

    Returns 0 if all are finite here. Raises Diverged if not; BadInput, BadCheckpoint if it cannot be replayed.
    """
    folder = Path(str(config.replay))
    about = read_incident(folder)
    theirs = schema.read_config(TrainConfig, folder / "config.json")
    same = {"micro_batch_size": about["micro_batch_size"], "precision": about["precision"], "devices": None}
    same["strategy"] = "ddp"
    hardware = schema.from_dict(HardwareConfig, config.hardware.model_dump() | same)
    run = theirs.model_copy(update={"hardware": hardware})
    schema.run_check(lambda: run.check_ranks_divide_batch(1, "hardware.devices"))
    if not (folder / "checkpoint").is_dir():
        raise BadCheckpoint(
            f"{one_line(folder)}: holds no weights; the first {WITH_STATE} incidents do, if the weights were finite"
        )
    compute = set_up_device(hardware)
    dataset = prepare_if_small(run.data)
    state = build_state(run, run.model.with_vocab(dataset.vocab_size), compute)
    state.restore(load_verified(folder / "checkpoint"))
    batches = TrainBatches(dataset.train, run, compute.device)
    rows, bad = run_micro_batches(state, batches)
    table = format_table(
        f"step {about['step']} of {folder.parents[1]}", ("first sample", "loss", "norm", "not finite"), rows
    )
    logger.info(table)
    if bad:
        raise Diverged(f"step {about['step']}: not finite here either, in {len(bad)} places, first {min(bad)}")
    logger.info(f"every number is finite here, the run had loss {about['loss']} and gradient norm {about['grad_norm']}")
    return 0


def run_micro_batches(state: TrainState, batches: TrainBatches) -> tuple[list[list[str]], set[str]]:
    """Run forward and backward on each micro-batch alone.

    Returns table rows of first sample, loss, gradient norm and non-finite gradients, and all that is not finite.
    """
    rows: list[list[str]] = []
    bad: set[str] = set()
    for first in batches.first_samples(state.samples):
        batch = batches.read_batch(first)
        state.optimizer.zero_grad(set_to_none=True)
        with state.compute.autocast():
            loss = state.forward(batch.ids, batch.targets, keys=batch.keys) / batch.targets.numel()
            loss.backward()
        named = [(name, p.grad) for name, p in state.model.named_parameters() if p.grad is not None]
        wrong = [name for name, grad in named if not torch.isfinite(grad).all()]
        norm = torch.stack([grad.norm() for _, grad in named]).norm()
        bad |= {*wrong, *([] if torch.isfinite(loss) else ["the loss"])}
        rows.append([str(first), f"{loss.item():.6g}", f"{norm.item():.4g}", ", ".join(wrong[:2]) or "-"])
    return rows, bad


def read_incident(folder: Path) -> dict[str, Any]:
    """Return the content of incident.json. Raises BadInput."""
    try:
        about = read_json_bytes(folder / "incident.json")
        if isinstance(about["step"], int) and isinstance(about["micro_batch_size"], int) and about["precision"]:
            return about
        raise ValueError("step and micro_batch_size are missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = "not an incident directory, like runs/NAME/incidents/0"
        raise BadInput(f"replay={one_line(folder)}: {why} ({one_line(error)})") from None
