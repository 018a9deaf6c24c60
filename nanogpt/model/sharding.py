"""Weights in shards: every rank keeps its part of each parameter, gradient and moment (FSDP2; Zhao et al. 2023).

A block's weights are whole on a rank only while it is computed. Its gradients are averaged and cut into parts as soon
as its backward pass is done, at every micro-batch, so that nothing whole ever adds up. torch's module for it takes
0.7 s to import: only those who shard pay that.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from nanogpt.model.gpt import GPT


def shard(model: GPT, device: torch.device) -> None:
    """Cut the weights into parts over all ranks, one block after the other, each part going to the device."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be in parts; then every rank must ask for it, in the same order."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def part_of(value: Tensor, parameter: Tensor) -> Tensor:
    """What this rank keeps of a whole value of the parameter, on its device; all of it where nothing is in parts."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole_model(model: GPT) -> GPT:
    """The model itself, or where its weights are in parts a copy that has all of them: a rank can use it alone."""
    parameters = dict(model.named_parameters())
    if not any(hasattr(parameter, "full_tensor") for parameter in parameters.values()):
        return model
    copy = GPT(model.config, seed=None).to(next(iter(parameters.values())).device)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(whole(parameters[name]))
    return copy
