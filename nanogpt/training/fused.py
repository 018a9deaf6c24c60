"""Several runs trained at once as one network. Each has its own directory, and equals the run alone up to rounding."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.console import label_lines
from nanogpt.device import set_up_device
from nanogpt.distributed.env import read_rank_env
from nanogpt.errors import BadInput
from nanogpt.formatting import format_value
from nanogpt.training.fused_step import FusedStep
from nanogpt.training.loop import Loop
from nanogpt.training.loop_end import close_loop, record_error, report_end, start_loop
from nanogpt.training.run import build_loop, join_group

MAY_DIFFER = ("optimizer.", "schedule.", "training.seed", "model.dropout", "name", "attempt", "new_attempt")
"""Beginnings of the keys in which runs that are trained as one network may differ."""
DIFFERENCES = "optimizer, schedule, training.seed and model.dropout"


@dataclass
class Member:
    """A run that is trained together with others."""

    number: int
    """Its index among all."""
    loop: Loop
    end: bool | Exception | None = None
    """Result of `Loop.reach_boundary`, or the error that ended the run; None: it goes on."""
    failed: str = ""
    """State of the run after an error."""

    def attempt(self, work: Callable[[Loop], bool | None]) -> None:
        """Do work that may end the run. An error is recorded and doesn't concern the other runs."""
        with label_lines(self.loop.config.run_name):
            try:
                self.end = work(self.loop)
            except Exception as error:
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the run with an error."""
        self.end, self.failed = error, record_error(self.loop, error)


def train_fused(configs: Sequence[TrainConfig]) -> list[int | Exception]:
    """Train or continue runs as one network. Return each run's exit code, or the error that ended it.

    A run that diverges or can't be opened doesn't end the others. Raises BadInput if they can't be trained together.
    """
    check_fusable(configs)
    ends: dict[int, int | Exception] = {}
    members: list[Member] = []
    with ExitStack() as stack:
        for number, config in enumerate(configs):
            with label_lines(config.run_name):
                try:
                    joined = stack.enter_context(join_group(config, read_rank_env(os.environ)))
                    compute, group, watchdog = joined
                    loop = stack.enter_context(build_loop(config, replace(compute, fused=True), group, watchdog))
                except Exception as error:
                    ends[number] = error
                    continue
            if loop is None:
                ends[number] = 0
            else:
                members.append(Member(number, loop))
        try:
            train_members(members)
        finally:
            for member in members:
                close_loop(member.loop, member.failed)
        for member in members:
            with label_lines(member.loop.config.run_name):
                end = member.end
                ends[member.number] = end if isinstance(end, Exception) else report_end(member.loop, bool(end))
    return [ends[number] for number in range(len(configs))]


def train_members(members: Sequence[Member]) -> None:
    """Train to the end, or until a stop request. Runs that continue from earlier checkpoints catch up first."""
    share_time(members)
    for member in members:
        member.attempt(start_loop)
    with closing(FusedStep()) as fused:
        while active := [member for member in members if member.end is None]:
            step = min(member.loop.state.step for member in active)
            stopped = any(member.end is False for member in members)  # a signal, which those after it have seen too
            ready = active if stopped else [member for member in active if member.loop.state.step == step]
            for member in ready:
                member.attempt(Loop.reach_boundary)
            if not any(member.end is False for member in members):
                take_step(fused, [member for member in ready if member.end is None])


def take_step(fused: FusedStep, members: Sequence[Member]) -> None:
    """Take a step of these members, as far as there are any."""
    share_time(members)
    for member in members:
        member.loop.pending.start_clock()
    try:
        steps = fused.take_step([member.loop for member in members])
    except Exception as error:
        for member in members:
            member.fail(error)
        return
    for member, step in zip(members, steps, strict=True):
        member.attempt(lambda loop, step=step: loop.add_step(step))


def share_time(members: Sequence[Member]) -> None:
    """Divide what is recorded of time among these members."""
    for member in members:
        if member.loop.logger:
            member.loop.logger.models_at_once = len(members)


def check_fusable(configs: Sequence[TrainConfig]) -> None:
    """Raise BadInput, naming the key, unless these runs can be trained as one network on this machine."""
    first, *others = map(shared_values, configs)
    if keys := [key for key, value in first.items() if any(other[key] != value for other in others)]:
        raise BadInput(f"{keys[0]}: runs that are trained as one network can't differ in it, only in {DIFFERENCES}")
    hardware = configs[0].hardware
    if (ranks := max(read_rank_env(os.environ).world, (hardware.nodes or 1) * (hardware.devices or 1))) > 1:
        raise make_refusal(f"hardware.devices={ranks}", "give hardware.devices=1")
    if hardware.fp8:
        raise make_refusal("hardware.fp8=true", "give hardware.fp8=false")
    compute = set_up_device(hardware)
    if compute.precision not in ("fp32", "bf16"):
        raise make_refusal(f"hardware.precision={compute.precision}", "give bf16 or fp32")
    if compute.compiles:
        raise make_refusal(f"hardware.compile={format_value(hardware.compile)}", "give hardware.compile=false")
    if compute.device.type == "cuda" and hardware.micro_batch_size == "auto":
        raise make_refusal("hardware.micro_batch_size=auto", "give a number")


def make_refusal(setting: str, remedy: str) -> BadInput:
    return BadInput(f"{setting}: is not supported for runs that are trained as one network; {remedy}")


def shared_values(config: TrainConfig) -> dict[str, Any]:
    """Return the keys in which runs that are trained as one network can't differ, with their values."""
    return {key: value for key, value in schema.iter_values(config) if not key.startswith(MAY_DIFFER)}
