"""Cross-entropy fused with the output head: the logits, the largest tensor of a step, are never all in memory.

Logits are computed in chunks of rows, and each chunk is overwritten with its gradient, so nothing is computed twice
(Wijmans et al. 2024; Liger Kernel, Hsu et al. 2024).
N rows, C channels, P vocabulary with its padding, K models trained together, or no such dimension.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nanogpt.estimates.memory import chunk_rows

IGNORED = -1  # target that does not count

Loss = Callable[[Tensor, Tensor, Tensor | None, Tensor, float | None], Tensor]
Chunk = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, float | None], tuple[Tensor, Tensor]]


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None = None,
    compiled: Chunk | None = None,
) -> Tensor:
    """Return the summed -log softmax(cap(x weight^T) + bias)[target] in nats, fp32: (N, C), (P, C), (P,), (N,) -> ().

    `bias` gets no gradient. Products are in autocast's precision. `compiled` is a compiled `compute_chunk`, for chunks
    of one size. With gradients `weight` may be that of K models, whose rows follow each other: (K N, C), (K, P, C),
    (P,), (K N,) -> (K,).
    """
    if torch.is_grad_enabled():
        if weight.dim() == 3:
            x, targets = (part.unflatten(0, (len(weight), -1)) for part in (x, targets))
        return _LinearCrossEntropy.apply(x, weight, bias, targets, softcap, compiled)  # pyright: ignore[reportReturnType]
    rows = rows_per_chunk(weight)
    chunks = zip(x.split(rows), targets.split(rows), strict=True)
    losses = [sum_cross_entropy(compute_logits(part, weight, bias, softcap), target) for part, target in chunks]
    return torch.stack(losses).sum()


def compile_loss() -> Loss:
    """Return `linear_cross_entropy` for a compiled model: one break in its graph, then a loop over a compiled chunk.

    Compiled with the model, the loop would be unrolled: compile time would grow with the batch, and the products of all
    chunks would stay in memory until they are added (pytorch/pytorch#135305).
    """
    chunk = torch.compile(compute_chunk, dynamic=False)
    loss: Any = torch.compiler.disable(partial(linear_cross_entropy, compiled=chunk))
    return loss


def apply_softcap(logits: Tensor, softcap: float) -> Tensor:
    """Bound logits to (-softcap, softcap) as in Gemma 2 (2024); fp32."""
    return softcap * torch.tanh(logits.float() / softcap)


def compute_logits(x: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Return capped logits plus bias: (…, C), (P, C), (P,) -> (…, P)."""
    if softcap is None:
        return F.linear(x, weight, bias)
    y = apply_softcap(F.linear(x, weight), softcap)
    return y if bias is None else y + bias


def rows_per_chunk(weight: Tensor) -> int:
    """Return the number of rows in a chunk, of each model."""
    return chunk_rows(weight.shape[:-1].numel(), gpu=weight.device.type != "cpu")


def sum_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def compute_chunk(
    part: Tensor, matrix: Tensor, bias: Tensor | None, target: Tensor, grad_weight: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Return a chunk's loss, (), and the gradient of `part`, (rows, C); add that of the head to `grad_weight`.

    Of K models: (K,) and (K, rows, C).
    """
    shift = None if bias is None or softcap else bias.to(matrix.dtype)
    if matrix.dim() == 2:
        logits = F.linear(part, matrix, shift).float()
    else:
        logits = torch.bmm(part, matrix.mT).float() if shift is None else torch.baddbmm(shift, part, matrix.mT).float()
    slope = None
    if softcap:
        bounded = logits.div_(softcap).tanh_()
        slope = 1 - bounded.square()
        logits = bounded.mul_(softcap) if bias is None else bounded.mul_(softcap).add_(bias)
    counted = (target != IGNORED)[..., None]
    chosen = target[..., None].where(counted, 0)
    highest, own = logits.amax(dim=-1, keepdim=True), logits.gather(-1, chosen)
    logits.sub_(highest).exp_()
    total = logits.sum(dim=-1, keepdim=True)
    loss = (highest + total.log() - own).where(counted, 0.0).sum((-2, -1))
    share = total.reciprocal().where(counted, 0.0)
    logits.mul_(share)  # in place: now they are the gradient
    if torch.compiler.is_compiling():  # a comparison fuses, a scatter does not
        logits -= (torch.arange(logits.shape[-1], device=logits.device) == chosen).where(counted, False).float()
    else:
        logits.scatter_add_(-1, chosen, -counted.float())
    grad_logits = (logits if slope is None else logits.mul_(slope)).to(matrix.dtype)
    del logits, slope
    if matrix.dtype != grad_weight.dtype:  # sums over chunks are in fp32
        grad_weight += grad_logits.mT @ part
    elif matrix.dim() == 2:
        grad_weight.addmm_(grad_logits.T, part)
    else:
        grad_weight.baddbmm_(grad_logits.mT, part)
    return loss, grad_logits @ matrix


def pad_chunk(chunk: Chunk, rows: int) -> Chunk:
    """Return `chunk` for at most `rows` rows: shorter inputs are padded with ignored rows."""

    def run_padded(part: Tensor, matrix: Tensor, bias: Any, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        given = len(part)
        if given < rows:
            part = F.pad(part, (0, 0, 0, rows - given))
            target = F.pad(target, (0, rows - given), value=IGNORED)
        loss, grad = chunk(part, matrix, bias, target, *rest)
        return loss, grad[:given]

    return run_padded


class _LinearCrossEntropy(torch.autograd.Function):
    """Compute the loss and its gradients in one pass; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        compiled: Chunk | None,
    ) -> Tensor:
        x, weight = x.detach(), weight.detach()  # else torch.compile traces second derivatives
        rows = max(1, min(rows_per_chunk(weight), x.shape[-2]))
        product = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        matrix = weight.to(product)
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        chunk = pad_chunk(compiled, rows) if compiled else compute_chunk
        losses: list[Tensor] = []
        parts = zip(x.split(rows, -2), targets.split(rows, -1), grad_x.split(rows, -2), strict=True)
        for part, target, grad in parts:
            loss, gradient = chunk(part.to(product), matrix, bias, target, grad_weight, softcap)
            grad.copy_(gradient)
            losses.append(loss)
            del gradient
        ctx.grads = grad_x, grad_weight
        return torch.stack(losses).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_x, grad_weight = ctx.grads
        del ctx.grads  # scaled in place, so only once
        (scale,) = grad_outputs
        scale = scale[..., None, None]
        return grad_x.mul_(scale), grad_weight.mul_(scale), None, None, None, None
