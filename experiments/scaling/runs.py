"""Finished runs as points of a scaling study. N parameters, D tokens, C FLOPs."""

import glob
import logging
from dataclasses import dataclass
from pathlib import Path

from experiments.results import comparable_evals
from nanogpt import tokenizer as tokenizers
from nanogpt.comparability import compare_measurements
from nanogpt.config import ModelConfig
from nanogpt.errors import BadInput, one_line
from nanogpt.estimates.flops import flops_per_token, parameter_counts
from nanogpt.loss_check import LossProblem, find_loss_problem
from nanogpt.measurement import Measurement
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory

logger = logging.getLogger(__name__)

SAME_BUDGET = 1.1  # runs whose FLOPs differ by less are of one budget: horizons are rounded to whole steps


@dataclass(frozen=True)
class ScalingRun:
    """Size, cost and loss of one run."""

    path: str
    n_params: float
    tokens: float
    flops: float
    loss: float
    """The lowest validation loss, nats per token."""


def read_finished_runs(pattern: str) -> list[ScalingRun]:
    """Return the finished runs among the folders that a glob names; print which are left out. Raises BadInput."""
    folders = [Path(path) for path in sorted(glob.glob(pattern)) if (Path(path) / "config.json").exists()]
    if not folders:
        raise BadInput(f"runs={one_line(pattern)}: no run directory; train some first, see --help")
    runs: list[ScalingRun] = []
    found: list[Measurement] = []
    for folder in folders:
        run = RunDirectory(folder)
        if run.read_status().get("state") != "finished":
            logger.info(f"left out: {one_line(folder)} isn't finished")
            continue
        one, measurement, trouble = read_run(run)
        if trouble and trouble.diverged:
            logger.info(f"left out: {one_line(folder)}: {trouble.description}")
            continue
        runs.append(one)
        found.append(measurement)
    verdict = compare_measurements(found)
    if verdict.unit != "nats":
        why = f"their losses in nats per token are not comparable, because {one_line(verdict.reason, 500)}"
        raise BadInput(f"runs={one_line(pattern)}: {why}; name runs that were measured on the same")
    return runs


def read_run(run: RunDirectory) -> tuple[ScalingRun, Measurement, LossProblem | None]:
    """Return a run, its measurement, and what is wrong with its loss. Raises BadCheckpoint, BadData, BadInput."""
    model, config = read_model(run), run.read_config()
    every = [row for row in read_rows(run.path / "metrics.jsonl") if "val_loss" in row]
    if not every:
        raise BadInput(f"runs: {one_line(run.path)} has no validation loss in metrics.jsonl")
    rows, measurement, _ = comparable_evals(every, config, run.read_starts(), run.path)
    tokens, lowest = max(row["tokens"] for row in rows), min(row["val_loss"] for row in rows)
    trouble = find_loss_problem(rows[-1]["val_loss"], lowest, model.vocab_size, rows[-1].get("train_loss"))
    trained = ScalingRun(
        path=str(run.path),
        n_params=parameter_counts(model)["total"],
        tokens=tokens,
        flops=tokens * flops_per_token(model),
        loss=lowest,
    )
    return trained, measurement, trouble


def read_model(run: RunDirectory) -> ModelConfig:
    """Return its model config, with the vocabulary size of its own tokenizer."""
    model = run.read_config().model
    return model if model.vocab_size is not None else model.with_vocab(len(tokenizers.load(run.path).tokens))


def group_by_budget(runs: list[ScalingRun]) -> list[list[ScalingRun]]:
    """Return groups of equal FLOPs, small budgets first, small models first."""
    groups: list[list[ScalingRun]] = []
    for run in sorted(runs, key=lambda run: run.flops):
        if groups and run.flops < SAME_BUDGET * groups[-1][0].flops:
            groups[-1].append(run)
        else:
            groups.append([run])
    return [sorted(group, key=lambda run: run.n_params) for group in groups]
