"""Cross-entropy of a linear layer's outputs that never holds all of them: the largest tensor of a GPT's training step.

The logits are computed a few rows at a time, and where gradients are wanted each piece becomes its share of them at
once, so nothing is computed twice (the idea of Wijmans et al. 2024 and of Liger Kernel, Hsu et al. 2024).
N rows, C channels, P vocabulary with its padding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nanogpt.model.memory import CHUNK_BYTES

IGNORED = -1  # a target that doesn't count


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None = None
) -> Tensor:
    """Summed -log softmax(capped(x weight^T) + bias)[target] in nats, fp32: (N, C), (P, C), (P,), (N,) -> ().

    `bias` is a constant. Rows whose target is IGNORED don't count. Under autocast the products are in its precision.
    """
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(x, weight, bias, targets, softcap)  # pyright: ignore[reportReturnType]
    pieces = zip(x.split(rows_of(weight)), targets.split(rows_of(weight)), strict=True)
    return torch.stack([summed(logits(part, weight, bias, softcap), target) for part, target in pieces]).sum()


def capped(logits: Tensor, softcap: float) -> Tensor:
    """Bounded to (-softcap, softcap), as in Gemma 2 (2024)."""
    return softcap * torch.tanh(logits.float() / softcap)


def logits(x: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """(…, C), (P, C), (P,) -> (…, P)."""
    if softcap is None:
        return F.linear(x, weight, bias)
    y = capped(F.linear(x, weight), softcap)
    return y if bias is None else y + bias


def rows_of(weight: Tensor) -> int:
    """Rows of logits computed at a time."""
    return max(1, CHUNK_BYTES // (4 * weight.shape[0]))


def summed(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients of a unit of it in one pass; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
    ) -> Tensor:
        rows = rows_of(weight)
        product = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        matrix = weight.to(product)
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        losses: list[Tensor] = []
        for part, target, grad in zip(x.split(rows), targets.split(rows), grad_x.split(rows), strict=True):
            part = part.to(product)
            logits = F.linear(part, matrix, bias if bias is None or softcap else bias.to(product)).float()
            slope = None
            if softcap:
                bounded = logits.div_(softcap).tanh_()
                slope = 1 - bounded.square()
                logits = bounded.mul_(softcap) if bias is None else bounded.mul_(softcap).add_(bias)
            counted = (target != IGNORED)[:, None]
            chosen = target[:, None].where(counted, 0)
            highest, own = logits.amax(dim=1, keepdim=True), logits.gather(1, chosen)
            logits.sub_(highest).exp_()
            total = logits.sum(dim=1, keepdim=True)
            losses.append((highest + total.log() - own).where(counted, 0.0).sum())
            share = total.reciprocal().where(counted, 0.0)
            logits.mul_(share).scatter_add_(1, chosen, -counted.float())  # the gradient, in its place
            piece = (logits if slope is None else logits.mul_(slope)).to(product)
            grad.copy_(piece @ matrix)
            if product == weight.dtype:
                grad_weight.addmm_(piece.T, part)
            else:  # sums over pieces are kept in fp32
                grad_weight += piece.T @ part
            del logits, piece, slope  # before the next are made
        ctx.grads = grad_x, grad_weight
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_x, grad_weight = ctx.grads
        del ctx.grads  # they are scaled in place, once
        (scale,) = grad_outputs
        return grad_x.mul_(scale), grad_weight.mul_(scale), None, None, None
