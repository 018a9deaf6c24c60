"""FSDP2 (Zhao et al. 2023): every rank keeps a shard of each parameter, gradient and optimizer state.

A block's weights are gathered in the precision of its matrix products, and only while it is computed: in the forward
pass and again in the backward pass. Gradients are reduced in fp32, after every micro-batch or the last. Embeddings,
head and last norm are gathered in fp32: the residual stream starts there, and a token's gradient is a sum over all its
positions.
torch's FSDP takes 0.7 s to import, so it is imported only when used.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanogpt.model.gpt import GPT


def apply_fsdp(model: GPT, device: torch.device, compute_dtype: torch.dtype | None) -> None:
    """Shard the weights over all ranks, block by block, and move each shard to the device.

    Blocks are gathered in `compute_dtype` (None: fp32), freed after the forward pass and gathered again for the
    backward pass. Without freeing them, sharding would save no memory.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    reduced = None if compute_dtype is None else torch.float32
    # Inputs are not cast: the residual stream stays fp32, and autocast casts the inputs of products.
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=reduced, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=mesh)


def set_gradient_sync(forward: nn.Module, last: bool, each: bool) -> None:
    """Choose, before a micro-batch of a sharded model, whether its gradients are reduced now.

    With `each` they are reduced after every micro-batch, else after the last; until then each rank accumulates full
    gradients in fp32. Does nothing if the model is not sharded.
    """
    if hasattr(forward, "set_requires_gradient_sync"):  # an FSDPModule
        model: Any = forward
        model.set_is_last_backward(last)
        model.set_requires_gradient_sync(last or each)


def gather_full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor of a shard. A collective for a sharded tensor: all ranks call it in the same order."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's shard of a full value of the parameter, on its device; the value itself if unsharded."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def gather_full_model(model: GPT) -> GPT:
    """Return the model, or a full copy of a sharded one, for use on a single rank. A collective if sharded."""
    parameters = dict(model.named_parameters())
    if not any(hasattr(parameter, "full_tensor") for parameter in parameters.values()):
        return model
    copy = GPT(model.config, seed=None).to(next(iter(parameters.values())).device)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(gather_full_tensor(parameters[name]))
    return copy
