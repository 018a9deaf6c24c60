"""A trained model, ready for use, with its tokenizer: of a run, or weights of elsewhere."""

from dataclasses import dataclass
from pathlib import Path

import torch

from nanogpt import tokenizer as tokenizers
from nanogpt.config import ModelConfig, TrainedConfig
from nanogpt.errors import BadCheckpoint, BadInput, escaped
from nanogpt.interop.hf_tokenizer import read_tokenizer
from nanogpt.interop.initial import load_weights
from nanogpt.interop.sources import Source, adopted, find_source
from nanogpt.model.gpt import GPT
from nanogpt.run_directory import RunDirectory, find
from nanogpt.schema import from_dict
from nanogpt.tokenizer import GPT2Tokenizer, Tokenizer


@dataclass(frozen=True)
class Trained:
    """What `sample.py`, `evaluate.py` and the export work with."""

    model: GPT
    """In evaluation mode, on the device."""
    tokenizer: Tokenizer
    name: str
    """For tables: the run directory, or the source of the weights."""
    run: RunDirectory | None
    step: int | None
    """Of the run's checkpoint."""


def load_trained(config: TrainedConfig, device: torch.device) -> Trained:
    """The model that a command asks for. Raises BadInput, BadCheckpoint, BadData, BadEnvironment."""
    if config.init_from is None:
        if config.tokenizer is not None:
            raise BadInput(f"tokenizer={escaped(config.tokenizer)}: is for init_from; a run has its own")
        return of_run(find(config.run, config.runs_dir), config.checkpoint, device)
    if config.run is not None:
        raise BadInput(f"init_from={escaped(config.init_from)}: run={escaped(config.run)} is given too; give one")
    source = find_source(config.init_from)
    tokenizer = chosen_tokenizer(config, source)
    plain = {"name": source.label, "vocab_multiple": 1}
    model_config = from_dict(ModelConfig, adopted(config.init_from, plain))
    model = GPT(model_config, seed=None)
    load_weights(model, source)
    if len(tokenizer.tokens) > (model_config.vocab_size or 0):
        why = f"has {len(tokenizer.tokens):,} tokens, the model {model_config.vocab_size:,}"
        raise BadInput(f"tokenizer={escaped(config.tokenizer)}: {why}")
    return Trained(model.eval().to(device), tokenizer, config.init_from, None, None)


def of_run(run: RunDirectory, which: str, device: torch.device) -> Trained:
    """A run's model at its best or latest checkpoint."""
    tokenizer = tokenizers.load(run.path)
    loaded = run.checkpoints.choose(which)
    model = GPT(run.config().model.with_vocab(len(tokenizer.tokens)), seed=None)
    try:
        tied = {"lm_head.weight": loaded.model["transformer.wte.weight"]} if model.config.tied_head else {}
        model.load_state_dict(loaded.model | tied)
    except (RuntimeError, KeyError) as error:
        raise BadCheckpoint(f"{escaped(loaded.path)}: not this model's: {escaped(error, 200)}") from None
    return Trained(model.eval().to(device), tokenizer, str(run.path), run, int(loaded.state["step"]))


def chosen_tokenizer(config: TrainedConfig, source: Source) -> Tokenizer:
    """The tokenizer that was named, or that of the weights. Raises BadInput where neither is known."""
    if config.tokenizer == "gpt2":
        return GPT2Tokenizer()
    folder = config.tokenizer and Path(config.tokenizer)
    tokenizer = read_tokenizer(folder) if folder else source.tokenizer()
    if tokenizer is None:
        why = "no tokenizer.json there" if folder else "nothing beside the weights says which they were trained with"
        allowed = "gpt2, or a folder that has tokenizer.json"
        raise BadInput(f"tokenizer={escaped(config.tokenizer or 'null')}: {why}; allowed: {allowed}")
    return tokenizer
