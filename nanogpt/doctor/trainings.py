"""Trainings of seconds in fresh processes, as train.py runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nanogpt import schema
from nanogpt.child_process import Child, ChildFailed, answer, end_child, start_child, wait_for_child
from nanogpt.config import TrainConfig
from nanogpt.distributed.env import STORE_VARIABLE
from nanogpt.errors import BadEnvironment, one_line

TIMEOUT = 240.0  # seconds for each rank
STEPS = 6


def tiny_config(folder: Path, name: str, **changes: dict[str, Any]) -> TrainConfig:
    """Return the config of six steps of eight windows of bytes, with dropout.

    Changes come by section: `tiny_config(…, hardware={"device": "cpu"})`.
    """
    text = folder / "text.txt"
    if not text.exists():
        words = ("alpha", "beta", "gamma", "delta", "epsilon")
        text.write_text("".join(f"{words[i * i % 5]} {words[i * 7 % 5]} {i}\n" for i in range(900)))
    values: dict[str, dict[str, Any]] = {
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "dropout": 0.1},
        "data": {"corpus": "text", "source": str(text), "tokenizer": "byte", "dir": str(folder / "data")},
        # With this eps Adam does not blow the rounding of a tiny gradient up to a full step.
        "optimizer": {"lr": 1e-4, "eps": 1e-3},
        "training": {"batch_tokens": 128, "steps": STEPS},
        "eval": {"every": STEPS // 2, "tokens": 128},
        "hardware": {"threads": 1, "compile": False},
        "tracking": {"log_every": 1, "sample_tokens": 0},
    }
    merged = {section: values.get(section, {}) | changes.get(section, {}) for section in {*values, *changes}}
    return schema.from_dict(TrainConfig, {"name": name, "runs_dir": str(folder / name)} | merged)


def train_side_by_side(folder: Path, *trainings: tuple[TrainConfig, int]) -> None:
    """Train each config on its number of ranks, all at once. Raises BadEnvironment with the last line of a failed rank.

    Every rank is a process; the ranks of a training meet through a file in `folder`.
    """
    ranks: list[Child] = []
    try:
        for number, (config, world) in enumerate(trainings):
            store = str(folder / f"store-{config.name}-{number}")
            ranks += [start_rank(rank, world, store, schema.to_json(config)) for rank in range(world)]
        for rank in ranks:
            wait_for_child(rank, TIMEOUT)
    except ChildFailed as failure:
        ended = f"a training was ended by signal {-failure.code}: " if failure.code < 0 else ""
        raise BadEnvironment(one_line(f"{ended}{failure}", 400)) from None
    except subprocess.TimeoutExpired:
        raise BadEnvironment(f"a training of {STEPS} steps took more than {TIMEOUT:g} s") from None
    finally:
        for rank in ranks:
            end_child(rank)


def start_rank(rank: int, world: int, store: str, message: str) -> Child:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    environment = {name: str(value) for name, value in numbers.items()} | {STORE_VARIABLE: store}
    environment["TORCH_CPP_LOG_LEVEL"] = os.environ.get("TORCH_CPP_LOG_LEVEL", "FATAL")
    return start_child("nanogpt.doctor.trainings", message=message, **environment)


def train_config(message: str) -> str:
    """Train a config, given as JSON, and return nothing. Ends this process with the exit code of a failed training."""
    from nanogpt.training.run import train

    if code := train(schema.from_dict(TrainConfig, json.loads(message))):
        sys.exit(code)
    return ""


if __name__ == "__main__":
    sys.exit(answer(train_config))
