"""Sharded weights: every rank keeps its part of each parameter, gradient and moment (FSDP2; Zhao et al. 2023).

A block's weights are whole on a rank only while it is computed, forward and again backward, in the precision of its
matrix products. Its gradients are reduced in fp32, at every micro-batch or at the last. Embeddings, head and last norm
are gathered in fp32: the residual stream begins with them, and a token's gradient is a sum over all its positions.
torch's module for it takes 0.7 s to import: only those who shard pay that.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanogpt.model.gpt import GPT


def apply_fsdp(model: GPT, device: torch.device, compute_dtype: torch.dtype | None) -> None:
    """Cut the weights into parts over all ranks, one block after the other, each part going to the device.

    Blocks are gathered in `products`, the dtype of matrix products; None: fp32. They are freed after the forward pass
    and gathered again for the backward pass: kept, they would take as much as no sharding at all.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    reduced = None if compute_dtype is None else torch.float32
    # Inputs stay as they are: the residual stream is fp32, and autocast rounds what enters a product.
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=reduced, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=mesh)


def set_gradient_sync(forward: nn.Module, last: bool, each: bool) -> None:
    """Before a micro-batch of a sharded model: with `each` its gradients are reduced at once, else with the last one's,
    up to which they add up whole on each rank, in fp32. Does nothing where weights aren't sharded.
    """
    if hasattr(forward, "set_requires_gradient_sync"):  # an FSDPModule
        model: Any = forward
        model.set_is_last_backward(last)
        model.set_requires_gradient_sync(last or each)


def gather_full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that may be in parts; then every rank must ask for it, in the same order."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """What this rank keeps of a whole value of the parameter, on its device; all of it where nothing is in parts."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def gather_full_model(model: GPT) -> GPT:
    """The model itself, or where its weights are in parts a copy that has all of them: a rank can use it alone."""
    parameters = dict(model.named_parameters())
    if not any(hasattr(parameter, "full_tensor") for parameter in parameters.values()):
        return model
    copy = GPT(model.config, seed=None).to(next(iter(parameters.values())).device)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(gather_full_tensor(parameters[name]))
    return copy
