"""K models of one shape, computed as one: their weights are stacked, and their sequences follow each other in a batch.

Modules without weights, such as attention itself, treat K B sequences like any batch; the others are replaced by those
in this file. Each model's parameters become views of the stacks, so it is evaluated, updated and saved as usual.
K models, B sequences of each, T time, C channels, P vocabulary with its padding.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.nn import functional as F

from nanogpt.errors import BadInput
from nanogpt.model.context import ForwardContext
from nanogpt.model.dropout import Dropout, dropout
from nanogpt.model.gpt import GPT
from nanogpt.model.layers import LayerNorm, RMSNorm
from nanogpt.model.short_conv import ShortConv


class StackedGPT(GPT):
    """K models; called with (K B, T) ids, targets and (K B,) dropout keys it returns their summed losses, (K,)."""

    def __init__(self, models: Sequence[GPT]) -> None:
        """Stack the weights of models that differ in nothing but weights and dropout, and make theirs views.

        Raises BadInput for a layer that can't be stacked.
        """
        first = models[0]
        super().__init__(first.config, seed=None)
        self.activation_checkpointing, self.fused_groups = first.activation_checkpointing, first.fused_groups
        same_dropout = len({model.config.dropout for model in models}) == 1
        self.recompute_attention_weights = first.recompute_attention_weights and same_dropout
        self.parameters_of: dict[Parameter, list[Parameter]] = {}
        """The K parameters that each stack holds."""
        for name, module in list(self.named_modules()):
            if has_parameters(module) or isinstance(module, Dropout):
                self.set_submodule(name, self.stack_modules(name, [model.get_submodule(name) for model in models]))
        self.pad_mask = first.pad_mask

    def stack_modules(self, name: str, modules: Sequence[nn.Module]) -> nn.Module:
        """Return the module that computes K modules at once. Raises BadInput if there is none for their kind."""
        first = cast(Any, modules[0])
        if isinstance(first, Dropout):
            rates = [cast(Dropout, module).p for module in modules]
            return StackedDropout(rates, first.index)
        names = [key for key, _ in first.named_parameters(recurse=False)]
        stacks = {key: self.stack_parameters(key, modules) for key in names}
        match first:
            case nn.Linear():
                return StackedLinear(stacks)
            case nn.Embedding():
                return StackedEmbedding(stacks)
            case LayerNorm() | RMSNorm():
                return StackedNorm(stacks, first)
            case ShortConv():
                return StackedConv(stacks, first.conv_index)
            case _:
                raise BadInput(f"{name}: a {type(first).__name__} of several models can't be trained as one")

    def stack_parameters(self, key: str, modules: Sequence[nn.Module]) -> Parameter:
        """Stack one parameter of K modules and make theirs views of the stack. Tied parameters share a stack."""
        parameters = [cast(Parameter, getattr(module, key)) for module in modules]
        for stack, held in self.parameters_of.items():
            if held[0] is parameters[0]:
                return stack
        stack = Parameter(torch.stack([parameter.detach() for parameter in parameters]))
        for parameter, view in zip(parameters, stack.detach(), strict=True):
            parameter.data = view
        self.parameters_of[stack] = parameters
        return stack

    def add_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        """Add each model's position embeddings to its sequences: (K B, T, C), (T,) -> (K B, T, C)."""
        table = cast(StackedEmbedding, self.transformer["wpe"]).weight[:, : len(positions)]
        return (x.unflatten(0, (len(table), -1)) + table[:, None]).flatten(0, 1)


def has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


class StackedModule(nn.Module):
    """A layer of K models. Its parameters have a first dimension K."""

    weight: Parameter
    bias: Parameter | None

    def __init__(self, stacks: dict[str, Parameter]) -> None:
        super().__init__()
        self.bias = None
        for name, stack in stacks.items():
            setattr(self, name, stack)


class StackedLinear(StackedModule):
    """K linear layers: (K B, T, inputs) -> (K B, T, outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        rows = x.reshape(len(self.weight), -1, x.shape[-1]).to(dtype)  # (K, B T, inputs)
        bias = None if self.bias is None else self.bias.to(dtype)
        y = cast(Tensor, _BatchedLinear.apply(rows, self.weight.to(dtype), bias))
        return y.view(*x.shape[:-1], -1)


class _BatchedLinear(torch.autograd.Function):
    """x weight^T + bias: (K, N, I), (K, O, I), (K, O) -> (K, N, O).

    torch's own gradient of bmm has the weight's last two dimensions in the other order, and would be copied.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        (grad,) = grad_outputs
        return torch.bmm(grad, weight), torch.bmm(grad.mT, x), grad.sum(1) if ctx.has_bias else None


class StackedEmbedding(StackedModule):
    """K embedding tables: (K B, T) ids -> (K B, T, C)."""

    def forward(self, ids: Tensor) -> Tensor:
        K, P = self.weight.shape[:2]
        first_rows = torch.arange(0, K * P, P, device=ids.device)[:, None, None]
        return F.embedding((ids.unflatten(0, (K, -1)) + first_rows).flatten(0, 1), self.weight.flatten(0, 1))


class StackedNorm(StackedModule):
    """K norms with gains and perhaps shifts: (K B, …, C) -> (K B, …, C)."""

    def __init__(self, stacks: dict[str, Parameter], norm: LayerNorm | RMSNorm) -> None:
        super().__init__(stacks)
        assert norm.eps is not None
        self.subtracts_mean, self.eps, self.shape = isinstance(norm, LayerNorm), norm.eps, norm.normalized_shape

    def forward(self, x: Tensor) -> Tensor:
        K = len(self.weight)
        if self.subtracts_mean and x.device.type == "cpu":  # the same kernels as alone, and so the same bits
            biases = [None] * K if self.bias is None else self.bias.unbind()
            parts = zip(x.chunk(K), self.weight.unbind(), biases, strict=True)
            return torch.cat([F.layer_norm(part, self.shape, weight, bias, self.eps) for part, weight, bias in parts])
        normalize = F.layer_norm if self.subtracts_mean else F.rms_norm
        y = normalize(x, self.shape, eps=self.eps).unflatten(0, (K, -1))
        y = y * spread(self.weight, y.dim())
        return (y if self.bias is None else y + spread(self.bias, y.dim())).flatten(0, 1)


class StackedConv(StackedModule):
    """K short convolutions: (K B, T, C) -> (K B, T, C)."""

    def __init__(self, stacks: dict[str, Parameter], conv_index: int) -> None:
        super().__init__(stacks)
        self.conv_index = conv_index

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        K, taps = self.weight.shape[:2]
        shifted = context.previous_inputs(x, taps, self.conv_index)
        y = x.unflatten(0, (K, -1))
        for weight, earlier in zip(self.weight.to(x.dtype).unbind(1), shifted, strict=True):
            y = y + spread(weight, 4) * earlier.unflatten(0, (K, -1))
        return y.flatten(0, 1)


def spread(vectors: Tensor, dims: int) -> Tensor:
    """Return (K, C) as (K, 1, …, 1, C) with this number of dimensions."""
    return vectors.view(len(vectors), *[1] * (dims - 2), -1)


class StackedDropout(Dropout):
    """Dropout of K models, each with its own rate: (K B, …) -> (K B, …)."""

    def __init__(self, rates: Sequence[float], index: int) -> None:
        super().__init__(max(rates))
        self.rates, self.index = rates, index

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        if keys is None or len(set(self.rates)) == 1:
            return dropout(x, self.p, keys, self.index)
        parts = zip(x.chunk(len(self.rates)), self.rates, keys.chunk(len(self.rates)), strict=True)
        return torch.cat([dropout(part, rate, own, self.index) for part, rate, own in parts])
