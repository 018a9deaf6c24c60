"""A trained model and its tokenizer, of a run."""

from dataclasses import dataclass

import torch

from nanogpt import tokenizer as tokenizers
from nanogpt.checkpoint import verify
from nanogpt.config import TrainedConfig
from nanogpt.errors import BadCheckpoint, BadInput, escaped
from nanogpt.model.gpt import GPT
from nanogpt.run_directory import RunDirectory, find
from nanogpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Trained:
    """A model that can be used."""

    model: GPT
    tokenizer: Tokenizer
    name: str
    run: RunDirectory | None
    step: int | None


def load_trained(config: TrainedConfig, device: torch.device) -> Trained:
    if config.init_from is not None:
        raise BadInput(f"init_from={config.init_from}: not yet")
    run = find(config.run, config.runs_dir)
    tokenizer = tokenizers.load(run.path)
    step = run.checkpoints.best_step() if config.checkpoint == "best" else None
    loaded = verify(run.checkpoints.path(step)) if step is not None else run.checkpoints.newest()[0]
    if loaded is None:
        raise BadCheckpoint(f"{escaped(run.path)}: no checkpoint yet")
    model = GPT(run.config().model.with_vocab(len(tokenizer.tokens)))
    model.load_state_dict({"lm_head.weight": loaded.model["transformer.wte.weight"], **loaded.model})
    return Trained(model.to(device).eval(), tokenizer, run.path.name, run, int(loaded.state["step"]))
