"""Run directories as training leaves them, without the training."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nanogpt.config import TrainConfig
from nanogpt.run_directory import RunDirectory
from nanogpt.schema import signature, to_json
from nanogpt.tokenizer import FILE, ByteTokenizer
from nanogpt.tokenizer import to_json as tokenizer_json
from tests.tiny_config import tiny_config

BATCH = 128  # tokens of a step of the tiny config


def made_config(**changes: object) -> TrainConfig:
    """Return a tiny config on bytes."""
    return tiny_config(Path("/nowhere"), Path("/nowhere/none.txt"), **{"data.tokenizer": "byte"} | changes)


def write_run(
    folder: Path,
    losses: Sequence[float],
    name: str = "run",
    state: str = "finished",
    every: int = 10,
    rates: Sequence[float] | None = None,
    starts: Sequence[dict[str, object]] | None = None,
    why: str = "",
    config: TrainConfig | None = None,
    **changes: object,
) -> Path:
    """Write a run with these validation losses at regular steps, and a training row halfway between them."""
    steps = every * (len(losses) - 1)
    config = config or made_config(**{"training.steps": max(1, steps)} | changes)
    path = folder / f"{name}-{signature(config)[:8]}"
    path.mkdir(parents=True)
    (path / "config.json").write_text(to_json(config))
    (path / FILE).write_text(tokenizer_json(ByteTokenizer()))
    rows: list[dict[str, float]] = []
    for i, loss in enumerate(losses):
        rows.append({"step": i * every, "tokens": i * every * BATCH, "val_loss": loss, "val_bpb": loss / 0.6931})
        if i + 1 < len(losses):
            step = i * every + every // 2
            rows.append({"step": step, "tokens": step * BATCH, "loss": loss, "lr": 1e-3, "grad_norm": 1.0})
            rows.append({"step": (i + 1) * every, "tokens": (i + 1) * every * BATCH, "loss": loss - 0.1, "lr": 1e-3})
    write_lines(path / "metrics.jsonl", rows)
    speeds = rates if rates is not None else [1000.0] * (len(losses) - 1)
    timing = [{"step": (i + 1) * every, "time": 0.0, "tokens_per_second": rate} for i, rate in enumerate(speeds)]
    write_lines(path / "timing.jsonl", timing)
    best = [min(losses), every * list(losses).index(min(losses))] if losses else None
    RunDirectory(path).write_status(state, step=steps, steps=config.training.steps, best=best)
    usual = {"from_step": 0, "code": "c0de" * 16, "device": "a CPU", "arithmetic": {"ranks": 1, "device": "cpu"}}
    for start in starts if starts is not None else [{}]:
        RunDirectory(path).add_start(usual | start)
    if why:
        (path / "log.txt").write_text(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {why}\n")
    return path


def write_lines(path: Path, rows: Sequence[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def seeds(folder: Path, losses: Sequence[float], **changes: object) -> list[Path]:
    """Write a finished run for each final loss, with seeds 1, 2, …"""
    return [
        write_run(folder, [5.5, loss + 0.5, loss], name=f"seed{i}", **{"training.seed": i} | changes)  # type: ignore[arg-type]
        for i, loss in enumerate(losses, 1)
    ]


def write_grid(folder: Path, settings: int = 250, count: int = 4, points: int = 50) -> dict[float, list[float]]:
    """Write finished runs of a grid of learning rates with several seeds each. Return the final losses by rate."""
    noise = np.random.default_rng(0)
    losses: dict[float, list[float]] = {}
    for i in range(settings):
        rate = round(1e-4 * 1.02**i, 8)
        for seed in range(1, count + 1):
            final = 2.0 + 0.3 * (i / settings - 0.5) ** 2 + 0.01 * float(noise.standard_normal())
            curve = final + 3.5 * np.exp(-np.linspace(0, 8, points))
            changes = {"optimizer.lr": rate, "training.seed": seed}
            write_run(folder, curve.tolist(), name=f"lr{rate}-seed{seed}", **changes)  # type: ignore[arg-type]
            losses.setdefault(rate, []).append(float(curve[-1]))
    return losses
