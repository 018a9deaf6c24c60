"""Giving a model the weights of a source: the first thing a fine-tuning does, and a command on OpenAI's weights."""

import torch

from nanogpt.config import TrainConfig
from nanogpt.errors import BadCheckpoint, BadData, one_line
from nanogpt.interop.hf_tokenizer import have_same_ids
from nanogpt.interop.names import fit_to_model
from nanogpt.interop.sources import WeightSource, find_source
from nanogpt.model.fsdp import shard_like
from nanogpt.model.gpt import GPT
from nanogpt.run_directory import RunDirectory, locate
from nanogpt.tokenizer import Tokenizer
from nanogpt.weights_digest import check_weights

SHOWN = 5  # tensors named in an error


def load_initial_weights(config: TrainConfig, model: GPT, tokenizer: Tokenizer) -> None:
    """Give a new run the weights of `init_from`; a run that has a checkpoint doesn't need them any more.

    Raises BadCheckpoint, BadData, BadEnvironment.
    """
    if config.init_from == "scratch" or RunDirectory(locate(config)).checkpoints.steps():
        return
    check_weights(config)
    source = find_source(config.init_from)
    check_same_tokenizer(source, tokenizer)
    load_weights(model, source)


@torch.no_grad()
def load_weights(model: GPT, source: WeightSource) -> None:
    """Copy a source's weights, cut to the model's context and padded to its rows, whatever its device.

    Raises BadCheckpoint naming the tensors that are missing, too many, of another shape or not finite; BadEnvironment.
    """
    tensors = fit_to_model(source.tensors(), model.config)
    named = dict(model.named_parameters())
    shapes = {
        name: (describe_shape(tensors.get(name)), describe_shape(named.get(name)))
        for name in sorted(tensors.keys() | named.keys())
    }
    wrong = [
        f"{one_line(name)} is {theirs} there and {ours} in the model"
        for name, (theirs, ours) in shapes.items()
        if theirs != ours
    ]
    if wrong:
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise BadCheckpoint(f"{source.label}: its weights don't fit: {', '.join(wrong[:SHOWN])}{more}")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BadCheckpoint(f"{source.label}: {name} is not finite")
        named[name].copy_(shard_like(tensor, named[name]))


def describe_shape(tensor: torch.Tensor | None) -> str:
    return "x".join(map(str, tensor.shape)) if tensor is not None else "absent"


def check_same_tokenizer(source: WeightSource, tokenizer: Tokenizer) -> None:
    """The data speaks in the tokens that the weights know, as far as that can be told. Raises BadData."""
    theirs = source.tokenizer()
    if theirs is None or have_same_ids(theirs, tokenizer):
        return
    if theirs.tokens == tokenizer.tokens:
        raise BadData(
            f"data.tokenizer={tokenizer.spec()['kind']}: has the tokens that {source.label} was trained with, but "
            "splits text or merges them otherwise, so texts get other ids"
        )
    raise BadData(
        f"data.tokenizer={tokenizer.spec()['kind']}: {len(tokenizer.tokens):,} tokens, which are not the "
        f"{len(theirs.tokens):,} that {source.label} was trained with"
        f"{'; use data.tokenizer=gpt2' if theirs.spec()['kind'] == 'gpt2' else ''}"
    )
