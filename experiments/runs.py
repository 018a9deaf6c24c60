"""Finished runs as points of a scaling study. N parameters, D tokens, C FLOPs."""

import glob
from dataclasses import dataclass
from pathlib import Path

from nanogpt import tokenizer as tokenizers
from nanogpt.config import ModelConfig
from nanogpt.errors import BadInput, escaped
from nanogpt.model.cost import flops_per_token, parameter_counts
from nanogpt.run_directory import RunDirectory
from nanogpt.tracking.console import say
from nanogpt.tracking.metrics import read_rows

SAME_BUDGET = 1.1  # runs whose FLOPs differ by less are of one budget: horizons are rounded to whole steps


@dataclass(frozen=True)
class Trained:
    """What one run came to."""

    path: str
    n_params: float
    tokens: float
    flops: float
    loss: float
    """The lowest validation loss, nats per token."""


def finished_runs(pattern: str) -> list[Trained]:
    """The finished runs among the folders that a glob names; the others are told about. Raises BadInput."""
    folders = [Path(path) for path in sorted(glob.glob(pattern)) if (Path(path) / "config.json").exists()]
    if not folders:
        raise BadInput(f"runs={escaped(pattern)}: no run directory; train some first, see --help")
    runs: list[Trained] = []
    for folder in folders:
        run = RunDirectory(folder)
        if run.status().get("state") == "finished":
            runs.append(read(run))
        else:
            say(f"left out: {escaped(folder)} isn't finished")
    return runs


def read(run: RunDirectory) -> Trained:
    """One run. Raises BadCheckpoint, BadData, BadInput for a folder that isn't whole."""
    model = model_of(run)
    rows = [row for row in read_rows(run.path / "metrics.jsonl") if "val_loss" in row]
    if not rows:
        raise BadInput(f"runs: {escaped(run.path)} has no validation loss in metrics.jsonl")
    tokens = max(row["tokens"] for row in rows)
    return Trained(
        path=str(run.path),
        n_params=parameter_counts(model)["total"],
        tokens=tokens,
        flops=tokens * flops_per_token(model),
        loss=min(row["val_loss"] for row in rows),
    )


def model_of(run: RunDirectory) -> ModelConfig:
    """Its network, with the vocabulary of its own tokenizer."""
    model = run.config().model
    return model if model.vocab_size is not None else model.with_vocab(len(tokenizers.load(run.path).tokens))


def by_budget(runs: list[Trained]) -> list[list[Trained]]:
    """Groups of equal FLOPs, small budgets first, small models first."""
    groups: list[list[Trained]] = []
    for run in sorted(runs, key=lambda one: one.flops):
        if groups and run.flops < SAME_BUDGET * groups[-1][0].flops:
            groups[-1].append(run)
        else:
            groups.append([run])
    return [sorted(group, key=lambda one: one.n_params) for group in groups]
