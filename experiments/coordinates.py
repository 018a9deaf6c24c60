"""`nanogpt coordinates`: how far a few steps move activations at several widths, with muP and without.

The check of Yang et al. 2022 (Tensor Programs V, appendix D.1): what grows with the width is wrongly parametrized.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from experiments.plots.coordinates import check_plot_format, draw_coordinates
from nanogpt.config import CoordinatesConfig, ModelConfig, ScheduleConfig
from nanogpt.console import print_text
from nanogpt.data.batches import Batch, to_inputs_and_targets
from nanogpt.data.dataset import expected_vocab_size
from nanogpt.device import Compute, set_up_device
from nanogpt.formatting import format_table
from nanogpt.model.gpt import GPT
from nanogpt.output_paths import check_output_file
from nanogpt.training.state import build_state
from nanogpt.training.step import train_step

Moves = dict[str, list[float]]
"""Of each part, by step: the mean over its coordinates of |what it is - what it was before the first step|."""
NAMES: tuple[Literal["standard", "mup"], ...] = ("standard", "mup")


def check_coordinates(config: CoordinatesConfig) -> int:
    """Train at several widths, print the slopes and draw them. Return 0."""
    check_output_file("coordinates.out", config.coordinates.out)
    check_plot_format("coordinates.out", config.coordinates.out)
    compute, widths = set_up_device(config.hardware), config.coordinates.widths
    vocab_size, _ = expected_vocab_size(config.data)
    found = {name: [measure_moves(with_width(config, name, n), vocab_size, compute) for n in widths] for name in NAMES}
    rows = [
        [part, *(f"{log_log_slope([moves[part][-1] for moves in found[name]], widths):+.2f}" for name in NAMES)]
        for part in found["mup"][0]
    ]
    steps = config.coordinates.steps
    print_text(format_table(f"exponent of the width in what {steps} steps moved; 0 is right", ("part", *NAMES), rows))
    Path(config.coordinates.out).parent.mkdir(parents=True, exist_ok=True)
    draw_coordinates(found, widths, Path(config.coordinates.out))
    print_text(f"picture  {config.coordinates.out}")
    return 0


def with_width(config: CoordinatesConfig, name: Literal["standard", "mup"], n_embd: int) -> CoordinatesConfig:
    """Return the config at another width with the same head size, at its full rate, one micro-batch per step."""
    heads = n_embd // config.model.head_size
    kv_heads = config.model.n_kv_head and max(1, config.model.n_kv_head * heads // config.model.n_head)
    wider = {"n_embd": n_embd, "n_head": heads, "n_kv_head": kv_heads, "tie_weights": False, "dropout": 0.0}
    model = ModelConfig.model_validate(config.model.model_dump() | wider)
    sequences = config.coordinates.sequences
    sections = {
        "parametrization": config.parametrization.model_copy(update={"name": name}),
        "schedule": ScheduleConfig(name="constant"),
        "training": config.training.model_copy(update={"batch_tokens": sequences * model.block_size}),
        "hardware": config.hardware.model_copy(update={"micro_batch_size": sequences, "strategy": "ddp"}),
    }
    return config.model_copy(update={"model": model, **sections})


def measure_moves(config: CoordinatesConfig, vocab_size: int, compute: Compute) -> Moves:
    """Train some steps at the full rate on one random batch. Return how far each part moved."""
    state = build_state(config, config.model.with_vocab(vocab_size), compute)
    generator = torch.Generator().manual_seed(config.training.seed)
    shape = (config.coordinates.sequences, config.model.block_size + 1)
    tokens = torch.randint(vocab_size, shape, generator=generator)
    batch = Batch(*to_inputs_and_targets(tokens, compute.device), None)
    first, moves = read_activations(state.model, batch.ids, compute), dict[str, list[float]]()
    for _ in range(config.coordinates.steps):
        train_step(state, [batch], config)
        for part, now in read_activations(state.model, batch.ids, compute).items():
            moves.setdefault(part, []).append(float((now - first[part]).abs().mean()))
    return moves


@torch.no_grad()
def read_activations(model: GPT, ids: Tensor, compute: Compute) -> dict[str, Tensor]:
    """Return the outputs of the last block's attention and MLP, and the logits."""
    with record_activations(model) as found, compute.autocast():
        found["logits"] = model(ids)[..., : model.config.vocab_size]
    return {part: x.float() for part, x in found.items()}


@contextmanager
def record_activations(model: GPT) -> Generator[dict[str, Tensor]]:
    """Yield a dict that a forward pass fills with the outputs of the last block's parts."""
    found: dict[str, Tensor] = {}
    block = model.get_submodule(f"transformer.h.{model.config.n_layer - 1}")
    hooks = [
        block.get_submodule(name).register_forward_hook(lambda _, __, x, part=part: found.update({part: x}))
        for name, part in (("attn", "attention"), ("mlp", "mlp"))
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def log_log_slope(values: list[float], widths: tuple[int, ...]) -> float:
    return float(np.polyfit(np.log(widths), np.log(np.maximum(values, 1e-12)), 1)[0])
