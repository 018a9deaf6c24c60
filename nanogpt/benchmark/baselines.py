"""The programs to compare with: nanoGPT, from a checkout of the user's, and transformers.

Each runs its own code; weights' shapes, batches and prompts are given. Runs in the process of one measurement
(worker.py).
"""

import ast
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from nanogpt.benchmark.measurement import Workload
from nanogpt.benchmark.ours import Batches, Generator, Trainer
from nanogpt.config import ModelConfig
from nanogpt.config.bench import NANOGPT
from nanogpt.device import DTYPES, Compute
from nanogpt.errors import BadEnvironment, BadInput, one_line
from nanogpt.interop.export_config import check_nanogpt_form, check_values, to_hf_config
from nanogpt.training.step import Phase


def check_baseline(program: str, model: ModelConfig) -> None:
    """Raise BadEnvironment or BadInput if a program is missing or can't build the model."""
    if program == "transformers":
        if importlib.util.find_spec("transformers") is None:
            raise BadEnvironment("against=transformers: not installed: pip install 'transformers>=4.57'")
        to_hf_config(model)
        if model.position == "learned":
            check_values(model, "transformers' GPT-2", bias=True)
        return
    path = checkout_path(program) / "model.py"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"against={one_line(program, 200)}: {path.name}: {error.strerror}; allowed: nanoGPT's folder"
        ) from None
    except (SyntaxError, ValueError):
        raise BadInput(f"against={one_line(program, 200)}: {path.name} is not Python") from None
    missing = {"GPT", "GPTConfig"} - {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    if missing:
        raise BadInput(f"against={one_line(program, 200)}: {path.name} has no {' and no '.join(sorted(missing))}")
    check_nanogpt_form(model)


def checkout_path(program: str) -> Path:
    """Return the folder in `nanogpt:PATH`."""
    return Path(os.path.expanduser(program.removeprefix(NANOGPT))).resolve()


def build_nanogpt_model(workload: Workload, compute: Compute) -> Any:
    """Build nanoGPT's model with our shape and padded vocabulary."""
    sys.path.insert(0, str(checkout_path(workload.program)))
    theirs = importlib.import_module("model")
    model = workload.config.model
    names = ("block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    config = theirs.GPTConfig(vocab_size=model.padded_vocab_size, **{name: getattr(model, name) for name in names})
    torch.manual_seed(workload.config.training.seed)
    return theirs.GPT(config).to(compute.device)


def build_nanogpt_trainer(workload: Workload, compute: Compute, batches: Batches) -> Trainer:
    """Build the training step of nanoGPT's train.py; torch chooses the attention kernel, each step reads the loss."""
    model, settings = build_nanogpt_model(workload, compute), workload.config.optimizer
    device = compute.device.type
    optimizer = model.configure_optimizers(settings.weight_decay, settings.lr, settings.betas, device)
    scaler = GradScaler(device, enabled=compute.precision == "fp16")
    forward = torch.compile(model) if compute.compiles else model

    def step(phase: Phase) -> None:
        loss = torch.zeros(())
        for batch in batches:
            with phase("forward"), compute.products():
                _, loss = forward(batch.ids, batch.targets)
                loss = loss / len(batches)
            with phase("backward"):
                scaler.scale(loss).backward()
        if settings.grad_clip:
            with phase("clip"):
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        with phase("optimizer"):
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return model, step


def build_nanogpt_generator(workload: Workload, compute: Compute, prompts: Tensor) -> Generator:
    """Build nanoGPT's `generate`, which computes the whole window for every token."""
    model: Any = cast_to(build_nanogpt_model(workload, compute).eval(), compute)
    return model, lambda count: model.generate(prompts, count)


def build_transformers_generator(workload: Workload, compute: Compute, prompts: Tensor) -> Generator:
    """Build transformers' `generate` with its cache, sampling from the whole distribution, without early stop."""
    import transformers

    plain = workload.config.model.model_copy(update={"vocab_size": workload.config.model.padded_vocab_size})
    values = {key: value for key, value in to_hf_config(plain).items() if key not in ("architectures", "torch_dtype")}
    config = transformers.AutoConfig.for_model(**values, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    model: Any = cast_to(transformers.AutoModelForCausalLM.from_config(config).eval().to(compute.device), compute)
    mask = torch.ones_like(prompts)

    def draw(count: int) -> None:
        settings = transformers.GenerationConfig(
            max_new_tokens=count, do_sample=True, top_k=0, use_cache=True, eos_token_id=None, pad_token_id=0
        )
        texts = model.generate(prompts, attention_mask=mask, generation_config=settings)
        assert texts.shape[1] == prompts.shape[1] + count, "transformers stopped early"

    return model, draw


def cast_to(model: nn.Module, compute: Compute) -> nn.Module:
    """Convert the weights to the measured precision, as is done with ours."""
    return model if compute.precision == "fp32" else model.to(DTYPES[compute.precision])
