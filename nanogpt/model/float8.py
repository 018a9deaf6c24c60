"""Training in 8-bit floats, through torchao: the blocks' matrix products, while all weights stay fp32."""

import copy

from torch import nn

from nanogpt.model.gpt import GPT

MULTIPLE = 16  # of both sides of a matrix, which the GPU's product of 8-bit floats asks for


def convert_to_float8(model: GPT, emulate: bool = False) -> GPT:
    """A second form of the model for training, with the very same parameters and buffers.

    The model itself is untouched, so it is evaluated, sampled from and saved as ever. `emulate` rounds to 8 bits but
    multiplies in the usual precision, on any device: for tests.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # pyright: ignore

    shared: dict[int, object] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    settings = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)  # any number of tokens in a micro-batch
    convert_to_float8_training(twin.transformer["h"], module_filter_fn=supports_float8, config=settings)
    return twin


def supports_float8(module: nn.Module, name: str) -> bool:
    """Whether a layer of a block, by the name it has there, can be computed so."""
    return isinstance(module, nn.Linear) and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE)
