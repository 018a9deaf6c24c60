"""Sizes of the GPU check: GPT-2's on a GPU; on a CPU a rehearsal of seconds."""

from dataclasses import dataclass
from typing import Any

import torch

from nanogpt import schema
from nanogpt.config import BenchConfig, DoctorConfig
from nanogpt.config.bench import NANOGPT


@dataclass(frozen=True)
class CheckSizes:
    """Models and lengths of the benchmarks."""

    models: dict[str, dict[str, int]]
    sequences: dict[str, int]
    """Sequences per micro-batch; a step has two micro-batches."""
    steps: int
    new_tokens: int
    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    """Lengths in tokens of the documents that are scored."""


GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50257, "vocab_multiple": 64}
MEDIUM = GPT2 | {"n_layer": 24, "n_head": 16, "n_embd": 1024}
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64, "vocab_size": 97}
REAL = CheckSizes(
    {"gpt2": GPT2, "gpt2_medium": MEDIUM}, {"gpt2": 16, "gpt2_medium": 8}, 20, 128, (1, 8, 64), (64, 200, 333, 515, 900)
)
REHEARSAL = CheckSizes({"gpt2": SMALL, "gpt2_medium": SMALL}, {"gpt2": 2, "gpt2_medium": 2}, 3, 8, (1, 2), (8, 30, 50))


def choose_sizes(device: torch.device) -> CheckSizes:
    return REHEARSAL if device.type == "cpu" else REAL


def bench_config(config: DoctorConfig, device: torch.device, name: str) -> BenchConfig:
    """Return the benchmark of a model: compiled and in bf16 on a GPU, eager and in fp32 in the rehearsal."""
    scale, gpu = choose_sizes(device), device.type == "cuda"
    sequences, model = scale.sequences[name], scale.models[name]
    values: dict[str, Any] = {
        "model": model | {"name": name},
        "training": {"batch_tokens": 2 * sequences * model["block_size"], "steps": 10_000},
        "hardware": {
            "device": config.device,
            "precision": "bf16" if gpu and torch.cuda.is_bf16_supported() else "fp16" if gpu else "fp32",
            "compile": gpu,
            "micro_batch_size": sequences,
        },
        "bench": {
            "warmup": 3,
            "steps": scale.steps,
            "rounds": 2 if gpu else 1,
            "new_tokens": scale.new_tokens,
            "batch_sizes": scale.batch_sizes,
        },
        "against": () if config.against is None else (f"{NANOGPT}{config.against}",),
    }
    return schema.from_dict(BenchConfig, values)
