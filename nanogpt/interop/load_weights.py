"""Load the weights of a source into a model."""

import torch

from nanogpt.config import TrainConfig
from nanogpt.errors import BadCheckpoint, BadData, one_line
from nanogpt.interop.hf_tokenizer import have_same_ids
from nanogpt.interop.layout import check_problems, format_shape
from nanogpt.interop.names import fit_to_model
from nanogpt.interop.sources import WeightSource, find_source
from nanogpt.model.fsdp import shard_like
from nanogpt.model.gpt import GPT
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.tokenizer import Tokenizer
from nanogpt.weights_digest import check_weights


def load_initial_weights(config: TrainConfig, model: GPT, tokenizer: Tokenizer) -> None:
    """Load the weights of `init_from` into the model of a new run; do nothing for a run that has a checkpoint.

    Raises BadCheckpoint, BadData, BadEnvironment.
    """
    if config.init_from == "scratch" or RunDirectory(locate_run(config)).checkpoints.steps():
        return
    check_weights(config)
    source = find_source(config.init_from)
    check_same_tokenizer(source, tokenizer)
    load_weights(model, source)


@torch.no_grad()
def load_weights(model: GPT, source: WeightSource) -> None:
    """Copy a source's weights, cut to the model's context and padded to its rows, to the model on any device.

    Raises BadCheckpoint naming tensors that are missing, unknown, of another shape or not finite; BadEnvironment.
    """
    tensors = fit_to_model(source.tensors(), model.config)
    parameters = dict(model.named_parameters())
    problems: list[str] = []
    for name in sorted(tensors.keys() | parameters.keys()):
        theirs, ours = (
            format_shape(group[name].shape) if name in group else "absent" for group in (tensors, parameters)
        )
        if theirs != ours:
            problems.append(f"{one_line(name)} is {theirs} there and {ours} in the model")
    check_problems(problems, source.label)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BadCheckpoint(f"{source.label}: {name} is not finite")
        parameters[name].copy_(shard_like(tensor, parameters[name]))


def check_same_tokenizer(source: WeightSource, tokenizer: Tokenizer) -> None:
    """Raise BadData if the data's tokenizer is known to differ from that of the weights."""
    theirs = source.tokenizer()
    if theirs is None or have_same_ids(theirs, tokenizer):
        return
    name, known = f"data.tokenizer={tokenizer.spec()['kind']}", f"that {source.label} was trained with"
    if theirs.tokens == tokenizer.tokens:
        raise BadData(f"{name}: has the tokens {known}, but splits text or merges them otherwise, so ids differ")
    remedy = "; use data.tokenizer=gpt2" if theirs.spec()["kind"] == "gpt2" else ""
    raise BadData(f"{name}: {len(tokenizer.tokens):,} tokens, which are not the {len(theirs.tokens):,} {known}{remedy}")
