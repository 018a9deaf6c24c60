"""Scaling laws fitted to runs: a parabola for each budget, and L(N, D) = E + A / N^alpha + B / D^beta for all of them.

Approaches 2 and 3 of Hoffmann et al. 2022. N parameters, D tokens, C FLOPs.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares, nnls
from scipy.special import logsumexp

from experiments.scaling.laws import Optimum
from experiments.scaling.runs import Trained, by_budget
from nanogpt.config import LawConfig
from nanogpt.errors import BadInput

Array = npt.NDArray[np.float64]

DELTA = 1e-3  # where Huber's loss turns from squares to absolute values, of log L, as in the paper
FEWEST_RUNS, FEWEST_OF_A_BUDGET = 6, 3
LOWEST, HIGHEST = np.array([-20, -20, -20, 1e-3, 1e-3]), np.array([5.0, 5, 5, 3, 3])  # see `start`
CLOSE = 1e-6  # relative; 1e-8 finds the same laws in twice the time
STARTS = list(itertools.product((0.1, 0.3, 0.6, 1.0), (0.1, 0.3, 0.6, 1.0), (0.3, 0.6, 0.9)))  # alpha, beta, E / min L


@dataclass(frozen=True)
class Parabola:
    """Loss over log10 N at one budget: `a` (x - x0)^2 + `lowest`, or no minimum where `a` is not positive."""

    flops: float
    runs: tuple[Trained, ...]
    a: float
    x0: float
    lowest: float

    @property
    def optimum(self) -> Optimum | None:
        """The best size, where it is between the smallest and the largest that were trained."""
        sizes = [run.n_params for run in self.runs]
        if self.a <= 0 or not min(sizes) <= 10**self.x0 <= max(sizes):
            return None
        tokens = self.flops / flops_per_parameter_token(self.runs) / 10**self.x0
        return Optimum(self.flops, 10**self.x0, tokens, self.lowest)

    def loss(self, n_params: Array) -> Array:
        return self.a * (np.log10(n_params) - self.x0) ** 2 + self.lowest


def refuse_too_few(runs: Sequence[Trained]) -> None:
    """Five constants need six runs, of several sizes and lengths. Raises BadInput."""
    if len(runs) < FEWEST_RUNS:
        raise BadInput(f"runs: {len(runs)} finished runs; a fit of five constants needs at least {FEWEST_RUNS}")
    for what, count in (
        ("model sizes", len({run.n_params for run in runs})),
        ("numbers of tokens", len({run.tokens for run in runs})),
    ):
        if count < 3:
            raise BadInput(f"runs: {count} different {what} among {len(runs)} runs; needed: at least 3")


def flops_per_parameter_token(runs: Sequence[Trained]) -> float:
    """C / (N D): 6 for large models, more for small ones, whose attention counts; the geometric mean."""
    return float(np.exp(np.mean([np.log(run.flops / run.n_params / run.tokens) for run in runs])))


def parabolas(runs: Sequence[Trained]) -> list[Parabola]:
    """One for each budget that has enough sizes."""
    found: list[Parabola] = []
    for group in by_budget(list(runs)):
        if len({run.n_params for run in group}) >= FEWEST_OF_A_BUDGET:
            a, b, c = np.polyfit([np.log10(run.n_params) for run in group], [run.loss for run in group], 2)
            flops = float(np.mean([run.flops for run in group]))
            found.append(Parabola(flops, tuple(group), float(a), float(-b / a / 2), float(c - b * b / a / 4)))
    return found


def power_law(optima: Sequence[Optimum]) -> tuple[float, float] | None:
    """(exponent, log10 factor) of the best N over C through the minima; None for fewer than two."""
    if len(optima) < 2:
        return None
    exponent, factor = np.polyfit([np.log10(o.flops) for o in optima], [np.log10(o.n_params) for o in optima], 1)
    return float(exponent), float(factor)


def fitted(runs: Sequence[Trained]) -> LawConfig:
    """The law whose log has the smallest Huber loss, from many starts."""
    N, D, L = columns(runs)
    starts = [start(N, D, L, *one) for one in STARTS]
    return best(N, D, L, starts)


def columns(runs: Sequence[Trained]) -> tuple[Array, Array, Array]:
    N, D, L = np.array([(run.n_params, run.tokens, run.loss) for run in runs], np.float64).T
    return N, D, L


def start(N: Array, D: Array, L: Array, alpha: float, beta: float, share: float) -> Array:
    """(log a, log b, log E, alpha, beta), a and b being A / N^alpha and B / D^beta at the middle of the runs: unlike A
    and B they hardly depend on the exponents. For given exponents and E the best are linear least squares.
    """
    floor = share * L.min()
    terms = [(column / middle(column)) ** -exponent for column, exponent in ((N, alpha), (D, beta))]
    a, b = nnls(np.stack(terms, axis=1), L - floor)[0]
    return np.array([np.log(max(a, 1e-6)), np.log(max(b, 1e-6)), np.log(max(floor, 1e-8)), alpha, beta])


def middle(column: Array) -> float:
    """The geometric mean."""
    return float(np.exp(np.log(column).mean()))


def best(N: Array, D: Array, L: Array, starts: Sequence[Array]) -> LawConfig:
    """The best of the minima that the starts lead to."""
    n, d = middle(N), middle(D)
    logs = np.log(N / n), np.log(D / d), np.log(L)
    lowest, found = np.inf, starts[0]
    for one in starts:
        minimum = least_squares(
            residuals,
            np.clip(one, LOWEST, HIGHEST),
            jacobian,  # pyright: ignore[reportArgumentType] (scipy declares only the words it takes instead)
            (LOWEST, HIGHEST),
            loss="huber",
            f_scale=DELTA,
            x_scale="jac",
            args=logs,
            ftol=CLOSE,
            xtol=CLOSE,
            gtol=CLOSE,
            max_nfev=200,
        )
        if minimum.cost < lowest:
            lowest, found = minimum.cost, minimum.x
    a, b, e, alpha, beta = found.tolist()
    A, B = float(np.exp(a) * n**alpha), float(np.exp(b) * d**beta)
    return LawConfig(A=A, B=B, E=float(np.exp(e)), alpha=alpha, beta=beta)


def residuals(x: Array, N: Array, D: Array, L: Array) -> Array:
    """log of the law minus log L, of each run. All but the exponents are logarithms, N and D relative to the middle."""
    return np.asarray(logsumexp(log_terms(x, N, D), axis=0)) - L


def jacobian(x: Array, N: Array, D: Array, L: Array) -> Array:
    """(runs, 5): the derivatives of the residuals."""
    terms = log_terms(x, N, D)
    shares = np.exp(terms - np.asarray(logsumexp(terms, axis=0)))
    return np.stack([shares[0], shares[1], shares[2], -shares[0] * N, -shares[1] * D], axis=1)


def log_terms(x: Array, N: Array, D: Array) -> Array:
    """(3, runs): the logarithms of the law's three terms."""
    a, b, e, alpha, beta = x
    return np.stack([a - alpha * N, b - beta * D, np.full_like(N, e)])


def resampled(runs: Sequence[Trained], law: LawConfig, count: int, seed: int) -> list[LawConfig]:
    """The law of as many runs drawn with replacement, `count` times: their spread is the uncertainty of the fit."""
    draws = np.random.default_rng(seed)
    N, D, L = columns(runs)
    starts = [(law.alpha, law.beta, min(0.99, law.E / L.min())), *STARTS[::24]]
    laws: list[LawConfig] = []
    while len(laws) < count:
        chosen = draws.integers(len(runs), size=len(runs))
        if len(set(chosen.tolist())) < FEWEST_RUNS - 1:
            continue
        n, d, loss = N[chosen], D[chosen], L[chosen]
        laws.append(best(n, d, loss, [start(n, d, loss, *one) for one in starts]))
    return laws


def interval(values: Sequence[float]) -> tuple[float, float]:
    """From the 5th to the 95th percentile."""
    low, high = np.percentile(values, [5, 95])
    return float(low), float(high)
