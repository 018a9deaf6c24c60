"""Predicted steps, tokens, FLOPs, memory and time of a training run, as values and as printed lines.

The estimates (flops.py, memory.py) use the model's shape and a measured or assumed rate. The time is that of training
steps only, without evaluations, checkpoints and compiling. Imports no torch.
"""

from dataclasses import dataclass
from typing import Any

from nanogpt.config import HardwareConfig, ModelConfig, Precision, TrainConfig
from nanogpt.cost import Cost, compute_cost
from nanogpt.errors import BadEnvironment, BadInput
from nanogpt.estimates.flops import compute_total_steps, flops_per_token, parameter_counts
from nanogpt.estimates.gpu_specs import GPU_SPECS
from nanogpt.estimates.memory import Memory, checkpoint_bytes, estimate_memory
from nanogpt.formatting import format_count, format_duration

LONG = 30 * 86_400  # seconds of training on a CPU above which the plan suggests GPUs
MFU = 0.4  # assumed where a device's peak is known; the printed time says so


@dataclass(frozen=True)
class Rate:
    """FLOP/s of one device in training."""

    flops: float
    how: str
    """Source of the number, in words."""


@dataclass(frozen=True)
class Machine:
    """Device of each rank."""

    where: str
    """Description: device, name and precision."""
    gpu: bool
    precision: Precision
    memory: int | None
    """Bytes, or None if unknown; ranks on a CPU share them."""
    rate: Rate
    name: str = ""
    """Name of the GPU: torch's, or a key of GPU_SPECS."""


def describe_absent_gpu(hardware: HardwareConfig) -> Machine:
    """Return the GPU of `hardware.gpu`, by its data sheet, to plan for it on a machine without one.

    Raises BadEnvironment if hardware.gpu is null, BadInput for a precision without a known peak.
    """
    if hardware.gpu is None:
        remedy = "to plan for a GPU, name it: hardware.gpu=h100 or hardware=8xh100; or use hardware.device=cpu"
        raise BadEnvironment(f"hardware.device={hardware.device}: no CUDA device here; {remedy}")
    device = GPU_SPECS[hardware.gpu]
    precision = device.precision if hardware.precision == "auto" else hardware.precision
    if precision not in ("fp16", device.precision):
        known = f"the peak of {hardware.gpu} is only known for {device.precision} and fp16"
        raise BadInput(f"hardware.precision={precision}: can't be planned without the GPU; {known}")
    rate = Rate(MFU * device.tflops * 1e12, f"{MFU:.0%} of its peak, assumed")
    where = f"{hardware.gpu}, {precision}; no CUDA device here: all numbers are from its data sheet"
    return Machine(where, True, precision, device.memory, rate, hardware.gpu)


@dataclass(frozen=True)
class Plan:
    """A config on a machine. `model` has a vocabulary size; `sure` is False if that size is assumed."""

    config: TrainConfig
    model: ModelConfig
    world: int
    machine: Machine
    sure: bool = True
    train_tokens: int | None = None
    """Tokens of the training split; None: not prepared yet."""

    @property
    def steps(self) -> int:
        return compute_total_steps(self.config, self.model)

    @property
    def tokens(self) -> int:
        return self.steps * self.config.training.batch_tokens

    @property
    def epochs(self) -> float | None:
        """Trained tokens over the tokens of the training split."""
        return self.tokens / self.train_tokens if self.train_tokens else None

    @property
    def flops(self) -> float:
        """FLOPs of the whole training, forward and backward."""
        return self.tokens * flops_per_token(self.model)

    @property
    def memory(self) -> Memory:
        """Estimated memory of each rank."""
        micro, machine = self.config.micro_batch_size(self.world), self.machine
        return estimate_memory(self.config, self.model, machine.precision, micro, machine.gpu, self.world)

    @property
    def seconds(self) -> float:
        return self.flops / self.machine.rate.flops / self.world

    @property
    def cost(self) -> Cost:
        device = "cuda" if self.machine.gpu else "cpu"
        return compute_cost(self.seconds, self.world, device, self.machine.name, self.config.cost)

    def json_fields(self) -> dict[str, Any]:
        """Return what `format=json` shows."""
        config, machine, memory = self.config, self.machine, self.memory
        on_cpu = not machine.gpu
        return {
            "model": config.model.name,
            "parameters": parameter_counts(self.model),
            "flops_per_token": flops_per_token(self.model),
            "vocab_size": self.model.vocab_size,
            "vocab_size_assumed": not self.sure,
            "steps": self.steps,
            "tokens": self.tokens,
            "train_tokens": self.train_tokens,
            "epochs": self.epochs,
            "flops": self.flops,
            "ranks": self.world,
            "batch_tokens": config.training.batch_tokens,
            "block_size": config.model.block_size,
            "micro_batch_size": config.micro_batch_size(self.world),
            "grad_accum": config.grad_accum(self.world),
            "device": machine.where,
            "precision": machine.precision,
            "flops_per_s": machine.rate.flops,
            "speed_source": machine.rate.how,
            "time_s": self.seconds,
            "cost": self.cost,
            "memory": memory,
            "needed_bytes": memory.host_bytes(self.world) if on_cpu else memory.total,
            "available_bytes": machine.memory,
            "checkpoint_bytes": checkpoint_bytes(self.model, config.optimizer.name),
        }

    def lines(self) -> list[str]:
        """Return lines with the model, steps, device, memory and time, and warnings."""
        lines = [
            f"model   {self.config.model.name}: {model_line(self)}",
            f"plan    {plan_line(self)}",
            f"device  {self.machine.where}",
            f"memory  {memory_line(self)}",
            f"time    about {format_duration(self.seconds)} of training "
            f"at {format_count(self.machine.rate.flops, 'G')}FLOP/s{' on each device' if self.world > 1 else ''}, "
            f"{self.machine.rate.how}",
            f"cost    about {self.cost.describe()}",
            *warn_large_step(self),
        ]
        if not self.machine.gpu and self.seconds > LONG:
            lines.append(
                "note    too long for a CPU; for the time on GPUs: dry_run=true hardware=8xh100, or h100, a100, …"
            )
        return lines


def warn_large_step(plan: Plan) -> list[str]:
    """Return a warning if a step takes more tokens than the training split has."""
    batch, available = plan.config.training.batch_tokens, plan.train_tokens
    if not available or batch <= available:
        return []
    why = f"each step is {batch / available:.3g} epochs of the {available:,} training tokens"
    return [f"warning: training.batch_tokens={batch}: {why}"]


def model_line(plan: Plan) -> str:
    counts = parameter_counts(plan.model)
    parts = ", ".join(f"{name} {format_count(count)}" for name, count in counts.items() if name != "total")
    assumed = "" if plan.sure else f"; a vocabulary of {plan.model.vocab_size} is assumed until the data is prepared"
    flops = f"{format_count(flops_per_token(plan.model), 'G')}FLOP/token"
    return f"{format_count(counts['total'])} parameters ({parts}), {flops}{assumed}"


def plan_line(plan: Plan) -> str:
    config, world = plan.config, plan.world
    ranks = f"{world} ranks, each " if world > 1 else ""
    times, available = plan.epochs, plan.train_tokens
    epochs = f" ({times:.3g} epochs of {format_count(available)})" if times and available else ""
    count, size = config.grad_accum(world), config.micro_batch_size(world)
    batches = f"{count} micro-batch{'es' if count > 1 else ''} of {size} x {config.model.block_size}"
    return (
        f"{plan.steps:,} steps of {config.training.batch_tokens:,} tokens = "
        f"{format_count(plan.tokens)} tokens{epochs}, {plan.flops:.3g} FLOPs; {ranks}{batches}"
    )


def eval_line(plan: Plan, tokens: int) -> str:
    """Return how much is evaluated, how often, and the time: a forward pass is a third of a step."""
    every = plan.config.eval.interval(plan.steps)
    times = 1 + plan.steps // every + (plan.steps % every > 0)
    each = tokens * flops_per_token(plan.model) / 3 / plan.machine.rate.flops / plan.world
    often = f"{times} times" if times > 1 else "once"
    if every != plan.config.eval.every:
        often += f", every {every} steps, as the run is shorter than eval.every={plan.config.eval.every}"
    return f"{tokens:,} tokens, {often}; about {format_duration(times * each)} (eval.tokens, eval.every)"


def memory_line(plan: Plan) -> str:
    """Return the memory of each device, and the host memory of the copy that checkpoints are written from."""
    memory, available = plan.memory, plan.machine.memory
    saved = checkpoint_bytes(plan.model, plan.config.optimizer.name)
    on_cpu = not plan.machine.gpu
    needed = memory.host_bytes(plan.world) if on_cpu else memory.total
    ranks = f", {plan.world} x {format_count(memory.total, 'G')}B and the copy" if on_cpu and plan.world > 1 else ""
    against = "" if available is None else f" of {format_count(available, 'G')}B"
    if available is not None and needed > available:
        against = f", more than the {format_count(available, 'G')}B available"
    copy = f"{format_count(memory.checkpoint_copy, 'G')}B"
    beside = (
        f", the program {format_count(memory.process, 'G')}B, the copy that is saved {copy}"
        if on_cpu
        else f", and {copy} of the machine's memory for the copy that is saved"
    )
    return (
        f"about {format_count(needed, 'G')}B{against}{ranks}: weights, gradients, optimizer state "
        f"{format_count(memory.state, 'G')}B, activations {format_count(memory.activations, 'G')}B, loss "
        f"{format_count(memory.loss, 'G')}B{beside}; a checkpoint {format_count(saved, 'G')}B"
    )
