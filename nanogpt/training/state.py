"""The state of a training run, how it is built, and its conversion to and from a checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from typing_extensions import assert_never

from nanogpt.checkpoint import LoadedCheckpoint, Tensors
from nanogpt.config import CompileMode, HardwareConfig, ModelConfig, TrainConfig
from nanogpt.data.batches import Batch
from nanogpt.data.sampler import derive_seed
from nanogpt.device import DTYPES, Compute, attention_used, memory_bytes
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.estimates.flops import compute_total_steps, parameter_counts
from nanogpt.estimates.memory import USABLE_SHARE, estimate_memory
from nanogpt.measurement import MEASUREMENT_KEY, read_recorded
from nanogpt.model.float8 import convert_to_float8
from nanogpt.model.fsdp import apply_fsdp, gather_full_tensor, shard_like
from nanogpt.model.gpt import GPT
from nanogpt.model.loss import compile_loss
from nanogpt.optim.build import build_optimizer
from nanogpt.optim.declaration import FP32
from nanogpt.training.spikes import Spikes

RECOMPILE_LIMIT = 128  # variants of a function compiled in one process


@dataclass
class TrainState:
    """A training run at a step boundary."""

    model: GPT
    forward: nn.Module
    """Called in a step: `model`, perhaps converted to fp8, compiled and wrapped in DistributedDataParallel. Shares its
    weights."""
    optimizer: Optimizer
    scaler: GradScaler
    compute: Compute
    group: ProcessGroup
    total_steps: int
    """The last step of the run."""
    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Training windows consumed."""
    last_eval_step: int = -1
    """Step of the last complete evaluation."""
    last_eval: dict[str, float] = field(default_factory=dict[str, float])
    """Results of that evaluation."""
    best: tuple[float, int] | None = None
    """Lowest validation loss and its step."""
    data_fingerprint: str = ""
    """Fingerprint of the training data set."""
    data_digests: dict[str, str] = field(default_factory=dict[str, str])
    """{file of the data set: digest}."""
    arithmetic: dict[str, Any] = field(default_factory=dict[str, Any])
    """Facts that affect rounding: precision, fp8, ranks, micro-batch, compile, fused, attention, threads, versions."""
    measurement: dict[str, Any] = field(default_factory=dict[str, Any])
    """Record of the evaluation set and precision (nanogpt/measurement.py)."""
    cuda_graphs: bool = False
    """True if the model may run as CUDA graphs; each run overwrites the outputs of the previous one."""
    spikes: Spikes = field(default_factory=Spikes)
    skipped_steps: list[int] = field(default_factory=list[int])
    """Steps that made no update because loss or gradient was not finite."""
    reduce_every_micro_batch: bool = True
    """With sharded weights: reduce gradients at every micro-batch instead of only at the last one of a step."""
    found_nonfinite: Tensor | None = None
    """Scalar device flag: 1 after a non-finite step until the host reads the metrics. The optimizer skips updates while
    it is set (torch's `found_inf`). None if the host reads the metrics of every step before its update.
    """

    def clear_gradients(self) -> None:
        """Clear gradients before the next step. With CUDA graphs they are zeroed in place.

        Otherwise the first micro-batch would make the graph's own output the gradient, and the next run overwrites it.
        """
        self.optimizer.zero_grad(set_to_none=not self.cuda_graphs)
        if self.cuda_graphs:
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    def tensors(self) -> dict[str, Tensors]:
        """Return the weights by name and the optimizer state by `<parameter>/<quantity>`."""
        named = dict(self.model.named_parameters())
        optimizer = {
            f"{name}/{quantity}": value.contiguous()
            for name, parameter in named.items()
            for quantity, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {"model": {name: p.detach().contiguous() for name, p in named.items()}, "optimizer": optimizer}

    def gather_tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield part, key and value of each of `tensors`, gathering one sharded tensor at a time.

        With sharded weights all ranks must iterate together.
        """
        for part, tensors in self.tensors().items():
            for key, tensor in tensors.items():
                yield part, key, gather_full_tensor(tensor)

    def to_dict(self) -> dict[str, Any]:
        """Return state.json of a checkpoint. It has `val_loss` if this step was evaluated."""
        facts: dict[str, Any] = {
            "step": self.step,
            "samples": self.samples,
            "evaluated": self.last_eval_step,
            "results": self.last_eval,
            "best": self.best,
            "data": self.data_fingerprint,
            "files": self.data_digests,
            "arithmetic": self.arithmetic,
            MEASUREMENT_KEY: self.measurement,
            "scaler": self.scaler.state_dict(),
            "spikes": self.spikes.to_dict(),
            "skipped": self.skipped_steps,
        }
        if self.last_eval_step == self.step:
            facts["val_loss"] = self.last_eval["val_loss"]
        return facts

    def restore(self, loaded: LoadedCheckpoint) -> None:
        """Restore a checkpoint. Raises BadCheckpoint naming tensors that do not fit, before anything is changed."""
        named = dict(self.model.named_parameters())
        check_tensors_match(loaded, named)
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(shard_like(loaded.model[name], parameter))
        for key, value in loaded.optimizer.items():
            name, _, quantity = key.rpartition("/")
            parameter = named[name]
            if value.dim() == 0:  # AdamW's step count
                value = value.to(parameter.device) if is_fused(self.optimizer) else value
            else:
                value = shard_like(value, parameter)
            self.optimizer.state[parameter][quantity] = value.clone()  # not a view of the file
        facts = loaded.state
        self.step, self.samples, self.last_eval_step = facts["step"], facts["samples"], facts["evaluated"]
        self.last_eval, self.best = facts["results"], tuple(facts["best"]) if facts["best"] else None
        self.measurement = read_recorded(facts)
        self.spikes, self.skipped_steps = Spikes(**facts.get("spikes", {})), facts.get("skipped", [])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(facts["scaler"])


def is_fused(optimizer: Optimizer) -> bool:
    """Return whether the optimizer uses fused kernels, which keep the step count on the parameter's device."""
    return bool(optimizer.defaults.get("fused"))


def check_tensors_match(loaded: LoadedCheckpoint, named: dict[str, torch.nn.Parameter]) -> None:
    """Raise BadCheckpoint unless names, shapes and types of the tensors are those of the model."""
    ours = {name: (tuple(p.shape), p.dtype) for name, p in named.items()}
    theirs = {name: (tuple(t.shape), t.dtype) for name, t in loaded.model.items()}
    wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    wrong += sorted(key for key in loaded.optimizer if key.rpartition("/")[0] not in ours)
    if wrong:
        names = ", ".join(one_line(name) for name in wrong[:5])
        raise BadCheckpoint(f"{one_line(loaded.path)}: is of another model; {len(wrong)} tensors differ: {names}")


def build_state(
    config: TrainConfig, model_config: ModelConfig, compute: Compute, group: ProcessGroup | None = None
) -> TrainState:
    """Return the state at step 0, with weights from the seed, on the device."""
    group = group or ProcessGroup()
    hardware, width = config.hardware, config.parametrization.width_multiplier(model_config.n_embd)
    attention = attention_used(hardware.attention, compute, model_config)
    model = GPT(model_config, derive_seed(config.training.seed, "init"), width)
    model.activation_checkpointing = hardware.activation_checkpointing
    model.recompute_attention_weights = compute.device.type != "cpu"  # CPUs have more memory than speed
    model.fused_groups = compute.device.type == "cuda" and attention in ("flash", "cudnn")
    match hardware.strategy:
        case "ddp":
            forward = group.wrap_ddp(place_model(model, hardware, compute), compute.device)
        case "fsdp":
            forward = shard_model(model, compute)
        case _:
            assert_never(hardware.strategy)
    optimizer = build_optimizer(model, config.optimizer, compute.device.type, group, width)
    each = hardware.strategy == "ddp" or must_reduce_every_micro_batch(config, model_config, compute, group)
    broken = torch.zeros((), device=compute.device) if defers_metrics(compute) else None
    if broken is not None:
        optimizer.found_inf = broken  # pyright: ignore[reportAttributeAccessIssue]  # torch's own convention
    state = TrainState(
        model=model,
        forward=forward,
        optimizer=optimizer,
        scaler=GradScaler(compute.device.type, enabled=compute.precision == "fp16"),
        compute=compute,
        group=group,
        total_steps=compute_total_steps(config, model_config),
        arithmetic=describe_arithmetic(config, compute, group.world, attention, each),
        reduce_every_micro_batch=each,
        found_nonfinite=broken,
        cuda_graphs=compute.device.type == "cuda" and hardware.compile_mode != "default",
    )
    state.clear_gradients()
    return state


def describe_arithmetic(
    config: TrainConfig, compute: Compute, world: int, attention: str, reduce_every_micro_batch: bool
) -> dict[str, Any]:
    """Return everything that affects rounding, as JSON values; checkpoints record it."""
    hardware = config.hardware
    return {
        "device": compute.device.type,
        "precision": compute.precision,
        "fp8": hardware.fp8,
        "tf32": hardware.tf32 if compute.device.type == "cuda" else None,
        "ranks": world,
        "strategy": hardware.strategy,
        "micro_batch_size": config.micro_batch_size(world),
        "compile": compute.compiles,
        "fused": compute.fused,
        "compile_mode": hardware.compile_mode,
        "attention": attention,
        "recompute": hardware.activation_checkpointing,
        "reduces_each": reduce_every_micro_batch,
        "threads": torch.get_num_threads() if compute.device.type == "cpu" else None,
        "torch": str(torch.__version__),
    }


def place_model(model: GPT, hardware: HardwareConfig, compute: Compute) -> nn.Module:
    """Return the module that a step calls, with the whole model on this rank's device."""
    model.to(compute.device)
    trained = convert_to_float8(model) if hardware.fp8 else model
    return compile_model(trained, hardware.compile_mode) if compute.compiles else trained


def shard_model(model: GPT, compute: Compute) -> nn.Module:
    """Return the module that a step calls, with sharded weights. Each block and the loss are compiled separately."""
    if compute.compiles:
        lift_recompile_limit()
        model.compiled_loss = compile_loss()
        for block in model.blocks:
            block.compile(dynamic=False)
    apply_fsdp(model, compute.device, DTYPES.get(compute.precision))
    return model


def must_reduce_every_micro_batch(
    config: TrainConfig, model: ModelConfig, compute: Compute, group: ProcessGroup
) -> bool:
    """Return whether sharded gradients are reduced at every micro-batch, which needs no memory for whole gradients.

    They are not if every rank's GPU has room for whole gradients by estimate. On a CPU they always are: it is as fast,
    and earlier runs keep their order of summation.
    """
    if compute.device.type != "cuda" or config.grad_accum(group.world) == 1:
        return True
    memory = estimate_memory(config, model, compute.precision, config.micro_batch_size(group.world), True, group.world)
    needed = memory.total + FP32 * parameter_counts(model)["total"]
    return bool(group.all_reduce_max(int(needed > USABLE_SHARE * (memory_bytes(compute.device) or 0))))


def defers_metrics(compute: Compute) -> bool:
    """Return whether metrics are read later than the step: not under fp16, whose scaler needs them, nor on a CPU."""
    return compute.device.type == "cuda" and compute.precision != "fp16"


def compile_model(model: GPT, mode: CompileMode = "default") -> nn.Module:
    """Return the model compiled for static shapes, of which a training has one. The loss is compiled separately.

    With dynamic shapes a second model in the same process, as in a sweep or a probe, once got wrong gradients (torch
    2.13, CPU). That was with dropout masks that reinterpreted memory (model/dropout.py), and has not been seen since.
    """
    lift_recompile_limit()
    model.compiled_loss = compile_loss()
    return cast(nn.Module, torch.compile(model, mode=mode, dynamic=False))


def lift_recompile_limit() -> None:
    """Raise torch's limit of 8 compiled variants per function, after which it runs eagerly."""
    import torch._dynamo  # takes seconds to import

    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)  # pyright: ignore


def warm_up_ddp_buckets(state: TrainState, batch: Batch) -> None:
    """Run two passes before the first step, after which DistributedDataParallel has its final order of buckets.

    Sums over four and more ranks depend on that order. Without this the first step of a resumed run would round
    differently from that of an uninterrupted run.
    """
    if isinstance(state.forward, DistributedDataParallel):
        with state.compute.autocast():
            (state.forward(batch.ids, batch.targets, keys=batch.keys) * 0.0).backward()
            state.clear_gradients()
            state.forward(batch.ids, batch.targets, keys=batch.keys)
