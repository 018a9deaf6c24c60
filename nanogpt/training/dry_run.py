"""`dry_run=true`: the plan of a training, with time and memory, without starting it."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch

from nanogpt import schema
from nanogpt.config import TrainConfig, check_warmup_fits
from nanogpt.data.dataset import expected_train_tokens
from nanogpt.data.prepare import describe_unprepared_hub
from nanogpt.device import set_up_device
from nanogpt.distributed.env import RankEnv
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.estimates.plan import Plan, describe_absent_gpu, warn_large_step
from nanogpt.json_output import print_result
from nanogpt.run_directory import locate_run
from nanogpt.run_identity import resolve_digests
from nanogpt.training.auto_batch_size import build_plan, resolve_micro_batch_size
from nanogpt.training.auto_choices import describe_choices, reuse_micro_batch_size
from nanogpt.training.validation import check_fsdp_ranks, check_paths, check_state_fits, expected_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DryRun:
    """Plan of a training, and lines on what was chosen for the device and which data is missing."""

    plan: Plan
    notes: list[str]

    def json_fields(self) -> dict[str, Any]:
        """Return what `format=json` shows."""
        notes = [" ".join(line.split()) for line in (*warn_large_step(self.plan), *self.notes)]
        return {"run": locate_run(self.plan.config)} | self.plan.json_fields() | {"notes": notes}


def print_plan(config: TrainConfig, rank_env: RankEnv) -> int:
    """Print the plan that a training would print at its start. Returns the exit code."""
    if rank_env.rank > 0:
        return 0
    print_result(config.format, compute_plan(config, rank_env), log_plan)
    return 0


def log_plan(found: DryRun) -> None:
    logger.info("\n".join([*found.plan.lines(), *found.notes]))


def compute_plan(config: TrainConfig, rank_env: RankEnv) -> DryRun:
    """Return the plan of a training. Raises LabError."""
    config = resolve_digests(config, remember=False)
    world = (config.hardware.nodes or 1) * config.hardware.devices if config.hardware.devices else rank_env.world
    schema.run_check(lambda: config.check_ranks_divide_batch(world, "WORLD_SIZE"))
    check_paths(config)
    check_fsdp_ranks(config, world)
    model, sure = expected_model(config)
    choices: list[str] = []
    if config.hardware.device.startswith("cuda") and not torch.cuda.is_available():
        plan = Plan(config, model, world, describe_absent_gpu(config.hardware), sure)
    else:
        compute = set_up_device(config.hardware, 0, config.hardware.devices or rank_env.local_world)
        check_state_fits(config, compute, world)
        config = resolve_micro_batch_size(
            reuse_micro_batch_size(config, compute, ProcessGroup(), world), model, compute, ProcessGroup(), world
        )
        plan = build_plan(config, model, compute, world, sure)
        choices = describe_choices(config, compute)
    plan = replace(plan, train_tokens=expected_train_tokens(config.data))
    schema.run_check(lambda: check_warmup_fits(config, plan.steps))
    return DryRun(plan, [*choices, *describe_unprepared_hub(config.data)])
