"""Trainings of seconds in fresh processes, as train.py has them: one process a rank, which meet through a file.

`nanogpt doctor.trainings` is such a process: a config as JSON comes in.
"""

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.distributed.env import STORE_VARIABLE
from nanogpt.errors import BadEnvironment, LabError, one_line

PATIENCE = 240.0  # seconds for all trainings of a check
STEPS = 6
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", STORE_VARIABLE)


def tiny_config(folder: Path, name: str, **changes: dict[str, Any]) -> TrainConfig:
    """Return a run of six steps of eight windows of bytes, with dropout.

    Changes come by section: `tiny_config(…, hardware={"device": "cpu"})`.
    """
    text = folder / "text.txt"
    if not text.exists():
        words = ("alpha", "beta", "gamma", "delta", "epsilon")
        text.write_text("".join(f"{words[i * i % 5]} {words[i * 7 % 5]} {i}\n" for i in range(900)))
    values: dict[str, dict[str, Any]] = {
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "dropout": 0.1},
        "data": {"corpus": "text", "source": str(text), "tokenizer": "byte", "dir": str(folder / "data")},
        "optimizer": {"lr": 1e-4, "eps": 1e-3},  # Adam turns the rounding of a vanishing gradient into no whole step
        "training": {"batch_tokens": 128, "steps": STEPS},
        "eval": {"every": STEPS // 2, "tokens": 128},
        "hardware": {"threads": 1, "compile": False},
        "tracking": {"log_every": 1, "sample_tokens": 0},
    }
    merged = {section: values.get(section, {}) | changes.get(section, {}) for section in {*values, *changes}}
    return schema.from_dict(TrainConfig, {"name": name, "runs_dir": str(folder / name)} | merged)


def train_side_by_side(folder: Path, *trainings: tuple[TrainConfig, int]) -> None:
    """Train each config on so many ranks, all at once. Raises BadEnvironment with the last line of one that failed."""
    ranks: list[subprocess.Popen[str]] = []
    try:
        for number, (config, world) in enumerate(trainings):
            store = folder / f"store-{config.name}-{number}"
            ranks += [start_rank(rank, world, store, schema.to_json(config)) for rank in range(world)]
        for rank in ranks:
            said = rank.communicate(timeout=PATIENCE)[1]
            if rank.returncode:
                lines = said.strip().splitlines() or [f"a training ended with code {rank.returncode}"]
                raise BadEnvironment(one_line(lines[-1].removeprefix("error: "), 400))
    except subprocess.TimeoutExpired:
        raise BadEnvironment(f"a training of {STEPS} steps took more than {PATIENCE:g} s") from None
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def start_rank(rank: int, world: int, store: Path, message: str) -> "subprocess.Popen[str]":
    """One rank, with its message."""
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    if world > 1:
        places = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": world,
            STORE_VARIABLE: store,
        }
        environment |= {name: str(value) for name, value in places.items()}
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    process = subprocess.Popen(
        [sys.executable, "-m", "nanogpt.doctor.trainings"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it is gone already, and its last line says why
        process.stdin.write(message)
        process.stdin.close()
    process.stdin = None  # communicate() would flush it
    return process


def main() -> int:
    """Train what standard input says."""
    from nanogpt.training.run import train

    try:
        with redirect_stdout(sys.stderr):
            return train(schema.from_dict(TrainConfig, json.load(sys.stdin)))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
