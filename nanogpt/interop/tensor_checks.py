"""Check that tensors say what the network assumes: a tied head, rotary frequencies, finite weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.interop.architecture import Values
from nanogpt.interop.layout import BUFFERS, EMBEDDING, HEAD, expected_inv_freq


def weights_by_plain_name(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], values: Values, where: str
) -> dict[str, Tensor]:
    """Return the weights under their plain names, without buffers and without a head that repeats the embedding.

    Raises BadCheckpoint naming a tensor that isn't finite, a head of its own where it is said to be tied, and
    frequencies that aren't those of the config.
    """
    weights: dict[str, Tensor] = {}
    for name, original in names.items():
        tensor = tensors[original]
        if BUFFERS.fullmatch(name):  # GPT-2's masks change nothing: transformers doesn't read them either
            if name.endswith("inv_freq"):
                check_frequencies(tensor, values, f"{where}: {one_line(original)}")
            continue
        if not tensor.isfinite().all():
            raise BadCheckpoint(f"{where}: {one_line(original)} is not finite")
        weights[name] = tensor
    if values["tie_weights"] and HEAD in weights:
        head = weights.pop(HEAD)
        embedding = next(weights[name] for name in EMBEDDING if name in weights)
        if not torch.equal(head, embedding):
            raise BadCheckpoint(
                f"{where}: {one_line(names[HEAD])} isn't the token embedding, but the head is said to be tied to it; "
                "tie_word_embeddings=false in config.json uses it, without it in the file the embedding is used"
            )
    return weights


def check_frequencies(tensor: Tensor, values: Values, where: str) -> None:
    """Raise BadCheckpoint unless an old file's rotary frequencies are those of its config."""
    expected = torch.tensor(expected_inv_freq(values))
    if tensor.shape != expected.shape or not torch.allclose(tensor.float(), expected, rtol=0.01):
        raise BadCheckpoint(f"{where}: these aren't the frequencies of rope_theta={values['rope_base']:g}")
