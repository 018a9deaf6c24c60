"""Polar Express (Amsel et al. 2025): compute the nearest matrix with orthonormal rows, by matrix products only.

For G = U S V^T it is U V^T. Each iteration moves all singular values towards 1 with an odd polynomial, the optimal one
for the interval in which the previous iteration left them. The first interval is [1e-3, 1].
"""

from functools import reduce
from itertools import chain, islice, repeat

import torch
from torch import Tensor

# Amsel et al. 2025, arXiv 2505.16932, algorithm 1: (a, b, c) of a x + b x^3 + c x^5.
PUBLISHED = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
SAFETY = 1.01  # keeps values convergent that rounding moved above 1; the last polynomial needs none
POLYNOMIALS = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in PUBLISHED[:-1]] + [PUBLISHED[-1]]
TINY = 1e-12  # below this norm a matrix counts as zero
RESTART = 5  # iterations per Gram matrix, which is less precise: its singular values are squared


def orthogonalize(stack: Tensor, steps: int) -> Tensor:
    """Return matrices with singular values near 1: (n, rows, cols) of any scale, rows <= cols -> (n, rows, cols).

    Computed in bf16 on a GPU, where its products are many times as fast, else in fp32. A zero matrix stays zero.
    """
    norms = torch.linalg.matrix_norm(stack.float(), keepdim=True)
    scale = (SAFETY * norms).clamp(min=TINY)
    polynomials = list(islice(chain(POLYNOMIALS, repeat(POLYNOMIALS[-1])), steps))
    if stack.device.type == "cuda":
        return iterate((stack / scale).bfloat16(), polynomials)
    if 2 * stack.shape[1] > stack.shape[2]:
        return iterate((stack / scale).float(), polynomials)
    return iterate_on_gram((stack / scale).float(), polynomials)


def iterate(x: Tensor, polynomials: list[tuple[float, float, float]]) -> Tensor:
    """Apply x <- (a + b A + c A^2) x with A = x x^T for each polynomial."""
    for a, b, c in polynomials:
        gram = torch.bmm(x, x.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # frees the previous one
        x = torch.baddbmm(x, gram, x, beta=a)
    return x


def iterate_on_gram(x: Tensor, polynomials: list[tuple[float, float, float]]) -> Tensor:
    """Compute `iterate` faster if there are far fewer rows than columns.

    The factors are polynomials of one small matrix, so they commute and are multiplied before the wide matrix.
    """
    identity = torch.eye(x.shape[1], device=x.device, dtype=x.dtype)
    for start in range(0, len(polynomials), RESTART):
        gram, factors = x @ x.mT, list[Tensor]()
        for a, b, c in polynomials[start : start + RESTART]:
            if factors:
                gram = factors[-1] @ gram @ factors[-1]  # the Gram matrix of the current x
            factors.append(torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * identity)
        x = reduce(torch.matmul, factors) @ x
    return x
