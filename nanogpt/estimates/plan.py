"""What a training would take: steps, tokens, FLOPs, memory and time, as values and as the lines a person reads.

Estimates, from the shape of the model and a rate that is either measured or said to be assumed; see
nanogpt/estimates/flops.py and memory.py for what they count. The time is that of the training steps alone, without
evaluations, saving and compiling. Without torch.
"""

from dataclasses import dataclass

from nanogpt.config import HardwareConfig, ModelConfig, Precision, TrainConfig
from nanogpt.errors import BadEnvironment, BadInput
from nanogpt.estimates.flops import compute_total_steps, flops_per_token, parameter_counts
from nanogpt.estimates.gpu_specs import GPU_SPECS
from nanogpt.estimates.memory import Memory, checkpoint_bytes, estimate_memory
from nanogpt.formatting import format_count, format_duration

LONG = 30 * 86_400  # seconds of training on a CPU after which the plan names GPUs
MFU = 0.4  # assumed, not measured, where a device's peak is known; the line of the time says so


@dataclass(frozen=True)
class Rate:
    """Floating-point operations a second of one device in training."""

    flops: float
    how: str
    """Where the number is from, in words."""


@dataclass(frozen=True)
class Machine:
    """What a plan needs to know of each rank's device."""

    where: str
    """Device, name and precision, for a person."""
    gpu: bool
    precision: Precision
    memory: int | None
    """Bytes, or None where it can't be told; ranks on a CPU share them."""
    rate: Rate


def describe_absent_gpu(hardware: HardwareConfig) -> Machine:
    """Return what data sheets say of the GPU that `hardware` names, to plan for it where there is none.

    Raises BadEnvironment when no kind is named, BadInput for a precision whose peak isn't known.
    """
    if hardware.gpu is None:
        remedy = "name its kind to plan for it, e.g. hardware.gpu=h100 or hardware=8xh100, or use hardware.device=cpu"
        raise BadEnvironment(f"hardware.device={hardware.device}: no CUDA device here; {remedy}")
    device = GPU_SPECS[hardware.gpu]
    precision = device.precision if hardware.precision == "auto" else hardware.precision
    if precision not in ("fp16", device.precision):
        known = f"the peak of {hardware.gpu} is known for {device.precision} and fp16"
        raise BadInput(f"hardware.precision={precision}: can't be planned without the GPU; {known}")
    rate = Rate(MFU * device.tflops * 1e12, f"{MFU:.0%} of its peak, assumed")
    where = f"{hardware.gpu}, {precision}; no CUDA device is here: all numbers are from its data sheet"
    return Machine(where, True, precision, device.memory, rate)


@dataclass(frozen=True)
class Plan:
    """A config on a machine. `model` has its vocabulary size, `sure` unless it had to be assumed."""

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
        """How often the training split's tokens are trained on."""
        return self.tokens / self.train_tokens if self.train_tokens else None

    @property
    def flops(self) -> float:
        """Of the whole training, forward and backward."""
        return self.tokens * flops_per_token(self.model)

    @property
    def memory(self) -> Memory:
        """Of each rank."""
        micro, machine = self.config.micro_batch_size(self.world), self.machine
        return estimate_memory(self.config, self.model, machine.precision, micro, machine.gpu, self.world)

    @property
    def seconds(self) -> float:
        return self.flops / self.machine.rate.flops / self.world

    def lines(self) -> list[str]:
        """Return the model, steps, device, memory and time, a line each; more where something is unusual."""
        lines = [
            f"model   {self.config.model.name}: {model_line(self)}",
            f"plan    {plan_line(self)}",
            f"device  {self.machine.where}",
            f"memory  {memory_line(self)}",
            f"time    about {format_duration(self.seconds)} of training "
            f"at {format_count(self.machine.rate.flops, 'G')}FLOP/s{' on each device' if self.world > 1 else ''}, "
            f"{self.machine.rate.how}",
            *warn_large_step(self),
        ]
        if not self.machine.gpu and self.seconds > LONG:
            lines.append("note    too long for a CPU; how long on GPUs: dry_run=true hardware=8xh100, or h100, a100 …")
        return lines


def warn_large_step(plan: Plan) -> list[str]:
    """Return a warning if a single step takes more tokens than the training split has."""
    batch, there = plan.config.training.batch_tokens, plan.train_tokens
    if not there or batch <= there:
        return []
    why = f"each step is {batch / there:.3g} epochs of the {there:,} training tokens"
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
    times = plan.epochs
    epochs = (
        ""
        if times is None or plan.train_tokens is None
        else f" ({times:.3g} epochs of {format_count(plan.train_tokens)})"
    )
    count, size = config.grad_accum(world), config.micro_batch_size(world)
    batches = f"{count} micro-batch{'es' if count > 1 else ''} of {size} x {config.model.block_size}"
    return (
        f"{plan.steps:,} steps of {config.training.batch_tokens:,} tokens = "
        f"{format_count(plan.tokens)} tokens{epochs}, {plan.flops:.3g} FLOPs; {ranks}{batches}"
    )


def eval_line(plan: Plan, tokens: int) -> str:
    """How much is evaluated, how often, and how long that takes: a forward pass is a third of a step's."""
    every = plan.config.eval.interval(plan.steps)
    times = 1 + plan.steps // every + (plan.steps % every > 0)
    each = tokens * flops_per_token(plan.model) / 3 / plan.machine.rate.flops / plan.world
    often = f"{times} times" if times > 1 else "once"
    if every != plan.config.eval.every:
        often += f", every {every} steps, as the run is shorter than eval.every={plan.config.eval.every}"
    return f"{tokens:,} tokens, {often}; about {format_duration(times * each)} (eval.tokens, eval.every)"


def memory_line(plan: Plan) -> str:
    """Write the memory line: of each device, and of the machine what the copy that is saved takes there."""
    memory, there = plan.memory, plan.machine.memory
    saved = checkpoint_bytes(plan.model, plan.config.optimizer.name)
    of_machine = not plan.machine.gpu
    needed = memory.host_bytes(plan.world) if of_machine else memory.total
    ranks = f", {plan.world} x {format_count(memory.total, 'G')}B and the copy" if of_machine and plan.world > 1 else ""
    against = "" if there is None else f" of {format_count(there, 'G')}B"
    if there is not None and needed > there:
        against = f", more than the {format_count(there, 'G')}B there are"
    copy = f"{format_count(memory.checkpoint_copy, 'G')}B"
    beside = (
        f", the program {format_count(memory.process, 'G')}B, the copy that is saved {copy}"
        if of_machine
        else f", and {copy} of the machine's memory for the copy that is saved"
    )
    return (
        f"about {format_count(needed, 'G')}B{against}{ranks}: weights, gradients, optimizer state "
        f"{format_count(memory.state, 'G')}B, activations {format_count(memory.activations, 'G')}B, loss "
        f"{format_count(memory.loss, 'G')}B{beside}; a checkpoint {format_count(saved, 'G')}B"
    )
