"""fp8 training through torchao: 8-bit matrix products in the blocks; all weights stay fp32."""

import copy

from torch import nn

from nanogpt.model.gpt import GPT

MULTIPLE = 16  # divides both dimensions of a matrix that a GPU can multiply in fp8


def convert_to_float8(model: GPT, emulate: bool = False) -> GPT:
    """Return a copy of the model for training, with fp8 products and the same parameters and buffers.

    The model itself is unchanged, so evaluation, sampling and saving do not use fp8. `emulate` rounds to 8 bits but
    multiplies in the usual precision, on any device, for tests.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # pyright: ignore

    shared: dict[int, object] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    settings = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)  # any number of tokens in a micro-batch
    convert_to_float8_training(twin.transformer["h"], module_filter_fn=supports_float8, config=settings)
    return twin


def supports_float8(module: nn.Module, name: str) -> bool:
    """Return True if a layer of a block can be computed in fp8. The signature is torchao's."""
    return isinstance(module, nn.Linear) and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE)
