"""All that changes while training, and its way into a checkpoint and back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from nanogpt.checkpoint import Loaded, Tensors
from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.data.sampler import seed_of
from nanogpt.device import Compute
from nanogpt.errors import BadCheckpoint, escaped
from nanogpt.model.cost import parameter_counts
from nanogpt.model.gpt import GPT
from nanogpt.optim.adamw import build_optimizer


@dataclass
class TrainState:
    """A training run at a step boundary."""

    model: GPT
    forward: Callable[..., Tensor]
    """The model, compiled where asked for; it shares the weights of `model`."""
    optimizer: Optimizer
    scaler: GradScaler
    compute: Compute
    steps: int
    """Where the run ends."""
    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Training windows seen."""
    evaluated: int = -1
    """The step of the last whole evaluation."""
    results: dict[str, float] = field(default_factory=dict[str, float])
    """What that evaluation found."""
    best: tuple[float, int] | None = None
    """Lowest validation loss and its step."""
    data: str = ""
    """Fingerprint of the data set that is trained on."""
    arithmetic: dict[str, Any] = field(default_factory=dict[str, Any])
    """What rounding depends on: precision, micro-batch, compile, threads, versions."""

    def tensors(self) -> dict[str, Tensors]:
        """Weights by name, and the optimizer's state by `<parameter>/<quantity>`."""
        named = dict(self.model.named_parameters())
        optimizer = {
            f"{name}/{quantity}": value.contiguous()
            for name, parameter in named.items()
            for quantity, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {"model": {name: p.detach().contiguous() for name, p in named.items()}, "optimizer": optimizer}

    def facts(self) -> dict[str, Any]:
        """The plain numbers of the state. `val_loss` is there when this very step was evaluated."""
        facts: dict[str, Any] = {
            "step": self.step,
            "samples": self.samples,
            "evaluated": self.evaluated,
            "results": self.results,
            "best": self.best,
            "data": self.data,
            "arithmetic": self.arithmetic,
            "scaler": self.scaler.state_dict(),
        }
        if self.evaluated == self.step:
            facts["val_loss"] = self.results["val_loss"]
        return facts

    def is_finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(bool(torch.isfinite(p).all()) for p in self.model.parameters())

    def restore(self, loaded: Loaded) -> None:
        """Take over a checkpoint. Raises BadCheckpoint naming the tensors that don't fit; then nothing is changed."""
        named = dict(self.model.named_parameters())
        refuse_misfits(loaded, named)
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(loaded.model[name])
        for key, value in loaded.optimizer.items():
            name, _, quantity = key.rpartition("/")
            parameter = named[name]
            on_device = value if quantity == "step" and not fused(self.optimizer) else value.to(parameter.device)
            self.optimizer.state[parameter][quantity] = on_device
        facts = loaded.state
        self.step, self.samples, self.evaluated = facts["step"], facts["samples"], facts["evaluated"]
        self.results, self.best = facts["results"], tuple(facts["best"]) if facts["best"] else None
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(facts["scaler"])


def fused(optimizer: Optimizer) -> bool:
    """Fused kernels keep their step count on the parameter's device."""
    return bool(optimizer.defaults.get("fused"))


def refuse_misfits(loaded: Loaded, named: dict[str, torch.nn.Parameter]) -> None:
    """Names, shapes and types of a checkpoint are those of the model."""
    ours = {name: (tuple(p.shape), p.dtype) for name, p in named.items()}
    theirs = {name: (tuple(t.shape), t.dtype) for name, t in loaded.model.items()}
    wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    wrong += sorted(key for key in loaded.optimizer if key.rpartition("/")[0] not in ours)
    missing = {"step", "samples", "evaluated", "results", "best", "scaler"} - set(loaded.state)
    if missing:
        raise BadCheckpoint(f"{escaped(loaded.path)}/state.json: lacks {', '.join(sorted(missing))}")
    if wrong:
        names = ", ".join(escaped(name) for name in wrong[:5])
        raise BadCheckpoint(f"{escaped(loaded.path)}: is of another model; {len(wrong)} tensors differ: {names}")


def build_state(config: TrainConfig, model_config: ModelConfig, compute: Compute) -> TrainState:
    """Step 0: weights from the seed, on the device."""
    model = GPT(model_config, seed_of(config.training.seed, "init")).to(compute.device)
    model.train()
    return TrainState(
        model=model,
        forward=torch.compile(model) if config.hardware.compile else model,
        optimizer=build_optimizer(model, config.optimizer, compute.device.type),
        scaler=GradScaler(compute.device.type, enabled=compute.precision == "fp16"),
        compute=compute,
        steps=config.steps(parameter_counts(model)["total"]),
        arithmetic={
            "device": compute.device.type,
            "precision": compute.precision,
            "micro_batch_size": config.micro_batch_size,
            "compile": config.hardware.compile,
            "threads": torch.get_num_threads() if compute.device.type == "cpu" else None,
            "torch": str(torch.__version__),
        },
    )
