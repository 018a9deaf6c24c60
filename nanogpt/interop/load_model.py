"""Load a trained model with its tokenizer, from a run or from other weights."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from nanogpt import tokenizer as tokenizers
from nanogpt.config import ModelConfig, TrainedConfig
from nanogpt.data.dataset import open_dataset
from nanogpt.errors import BadCheckpoint, BadInput, LabError, one_line
from nanogpt.generation.start_tokens import find_start_ids
from nanogpt.interop.hf_tokenizer import read_tokenizer
from nanogpt.interop.load_weights import load_weights
from nanogpt.interop.sources import WeightSource, fill_from_weights, find_source
from nanogpt.metrics_file import as_number
from nanogpt.model.gpt import GPT
from nanogpt.run_directory import RunDirectory, find_run
from nanogpt.schema import from_dict
from nanogpt.tokenizer import GPT2Tokenizer, Tokenizer


@dataclass(frozen=True)
class TrainedModel:
    """Trained model, for sampling, evaluation and export."""

    model: GPT
    """In evaluation mode, on the device."""
    tokenizer: Tokenizer
    name: str
    """Run directory, or source of the weights; for tables."""
    run: RunDirectory | None
    step: int | None
    """Step of the run's checkpoint."""
    start_ids: tuple[int, ...] = ()
    """First ids of a text without a prompt; empty: the tokenizer's default."""
    val_loss: float | None = None
    """Validation loss of that checkpoint, if it was evaluated."""


def load_trained(config: TrainedConfig, device: torch.device) -> TrainedModel:
    """Return the model that a command's config names. Raises BadInput, BadCheckpoint, BadData, BadEnvironment."""
    if config.init_from is None:
        if config.tokenizer is not None:
            raise BadInput(f"tokenizer={one_line(config.tokenizer)}: only for init_from; a run has its own")
        return load_run_model(find_run(config.run, config.runs_dir), config.checkpoint, device)
    if config.run is not None:
        raise BadInput(f"init_from={one_line(config.init_from)}: not allowed with run={one_line(config.run)}")
    source = find_source(config.init_from)
    tokenizer = resolve_tokenizer(config, source)
    plain = {"name": source.label, "vocab_multiple": 1}
    model_config = from_dict(ModelConfig, fill_from_weights(config.init_from, plain))
    model = GPT(model_config, seed=None)
    load_weights(model, source)
    if len(tokenizer.tokens) > (model_config.vocab_size or 0):
        why = f"has {len(tokenizer.tokens):,} tokens, the model {model_config.vocab_size:,}"
        raise BadInput(f"tokenizer={one_line(config.tokenizer)}: {why}")
    return TrainedModel(model.eval().to(device), tokenizer, config.init_from, None, None)


def load_run_model(run: RunDirectory, which: Literal["best", "latest"], device: torch.device) -> TrainedModel:
    """Return a run's model at its best or latest checkpoint. Raises BadCheckpoint, BadData."""
    tokenizer = tokenizers.load(run.path)
    loaded = run.checkpoints.load(which)
    model = GPT(run.read_config().model.with_vocab(len(tokenizer.tokens)), seed=None)
    try:
        tied = {"lm_head.weight": loaded.model["transformer.wte.weight"]} if model.config.tie_weights else {}
        model.load_state_dict(loaded.model | tied)
    except (RuntimeError, KeyError) as error:
        raise BadCheckpoint(f"{one_line(loaded.path)}: not of this model: {one_line(error, 200)}") from None
    step, val_loss = int(loaded.state["step"]), as_number(loaded.state.get("val_loss"))
    start = tuple(read_start_ids(run, tokenizer))
    return TrainedModel(model.eval().to(device), tokenizer, str(run.path), run, step, start, val_loss)


def read_start_ids(run: RunDirectory, tokenizer: Tokenizer) -> list[int]:
    """Return first ids that occur in the training data, as the last start recorded them or from the data set."""
    starts = run.read_starts()
    start = starts[-1] if starts else {}
    recorded: object = start.get("start_ids")
    if isinstance(recorded, list):
        ids = [i for i in recorded if isinstance(i, int) and 0 <= i < len(tokenizer.tokens)]  # pyright: ignore[reportUnknownVariableType]
        if ids:
            return ids
    data = run.read_config().data
    with suppress(LabError, OSError):
        dataset = open_dataset(data.model_copy(update={"verify": "size"}))
        if dataset.fingerprint == start.get("data"):
            return find_start_ids(tokenizer, dataset.train)
    ended = data.corpus == "hub" or b"\n" not in tokenizer.tokens
    return tokenizers.start_ids(tokenizer) if ended else [tokenizer.tokens.index(b"\n")]


def resolve_tokenizer(config: TrainedConfig, source: WeightSource) -> Tokenizer:
    """Return the tokenizer that the config names, or that of the weights. Raises BadInput if neither is known."""
    if config.tokenizer == "gpt2":
        return GPT2Tokenizer()
    folder = config.tokenizer and Path(config.tokenizer)
    tokenizer = read_tokenizer(folder) if folder else source.tokenizer()
    if tokenizer is None:
        why = "has no tokenizer.json" if folder else "the tokenizer of the weights isn't known"
        allowed = "gpt2, or a folder that has tokenizer.json"
        raise BadInput(f"tokenizer={one_line(config.tokenizer or 'null')}: {why}; allowed: {allowed}")
    return tokenizer
