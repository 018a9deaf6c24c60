"""Fit scaling laws to runs: a parabola per budget, and L(N, D) = E + A / N^alpha + B / D^beta for all of them.

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
from experiments.scaling.runs import ScalingRun, group_by_budget
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
    runs: tuple[ScalingRun, ...]
    a: float
    x0: float
    lowest: float

    @property
    def optimum(self) -> Optimum | None:
        """Return the best size if it lies between the smallest and the largest trained."""
        sizes = [run.n_params for run in self.runs]
        if self.a <= 0 or not min(sizes) <= 10**self.x0 <= max(sizes):
            return None
        tokens = self.flops / flops_per_parameter_token(self.runs) / 10**self.x0
        return Optimum(self.flops, 10**self.x0, tokens, self.lowest)

    def loss(self, n_params: Array) -> Array:
        return self.a * (np.log10(n_params) - self.x0) ** 2 + self.lowest


def check_enough_runs(runs: Sequence[ScalingRun]) -> None:
    """Raise BadInput for too few runs, sizes or lengths to fit five constants."""
    if len(runs) < FEWEST_RUNS:
        raise BadInput(f"runs: {len(runs)} finished runs; a fit of five constants needs at least {FEWEST_RUNS}")
    for what, count in (
        ("model sizes", len({run.n_params for run in runs})),
        ("numbers of tokens", len({run.tokens for run in runs})),
    ):
        if count < 3:
            raise BadInput(f"runs: {count} different {what} among {len(runs)} runs; needed: at least 3")


def flops_per_parameter_token(runs: Sequence[ScalingRun]) -> float:
    """Return C / (N D), geometric mean: 6 for large models, more for small ones, whose attention counts."""
    return float(np.exp(np.mean([np.log(run.flops / run.n_params / run.tokens) for run in runs])))


def fit_parabolas(runs: Sequence[ScalingRun]) -> list[Parabola]:
    """Return a parabola for each budget that has enough sizes."""
    found: list[Parabola] = []
    for group in group_by_budget(list(runs)):
        if len({run.n_params for run in group}) >= FEWEST_OF_A_BUDGET:
            a, b, c = np.polyfit([np.log10(run.n_params) for run in group], [run.loss for run in group], 2)
            flops = float(np.mean([run.flops for run in group]))
            found.append(Parabola(flops, tuple(group), float(a), float(-b / a / 2), float(c - b * b / a / 4)))
    return found


def fit_power_law(optima: Sequence[Optimum]) -> tuple[float, float] | None:
    """Return (exponent, log10 factor) of the best N over C through the minima; None for fewer than two."""
    if len(optima) < 2:
        return None
    exponent, factor = np.polyfit([np.log10(o.flops) for o in optima], [np.log10(o.n_params) for o in optima], 1)
    return float(exponent), float(factor)


def fit_law(runs: Sequence[ScalingRun]) -> LawConfig:
    """Return the law whose log has the smallest Huber loss, from many starts."""
    N, D, L = to_columns(runs)
    starts = [initial_parameters(N, D, L, *start) for start in STARTS]
    return fit_from_starts(N, D, L, starts)


def to_columns(runs: Sequence[ScalingRun]) -> tuple[Array, Array, Array]:
    N, D, L = np.array([(run.n_params, run.tokens, run.loss) for run in runs], np.float64).T
    return N, D, L


def initial_parameters(N: Array, D: Array, L: Array, alpha: float, beta: float, share: float) -> Array:
    """Return (log a, log b, log E, alpha, beta). a and b are A / N^alpha and B / D^beta at the geometric mean of the
    runs: unlike A and B they hardly depend on the exponents. Given exponents and E they are linear least squares.
    """
    floor = share * L.min()
    terms = [(column / geometric_mean(column)) ** -exponent for column, exponent in ((N, alpha), (D, beta))]
    a, b = nnls(np.stack(terms, axis=1), L - floor)[0]
    return np.array([np.log(max(a, 1e-6)), np.log(max(b, 1e-6)), np.log(max(floor, 1e-8)), alpha, beta])


def geometric_mean(column: Array) -> float:
    return float(np.exp(np.log(column).mean()))


def fit_from_starts(N: Array, D: Array, L: Array, starts: Sequence[Array]) -> LawConfig:
    """Return the law at the lowest of the minima that the starts lead to."""
    n, d = geometric_mean(N), geometric_mean(D)
    logs = np.log(N / n), np.log(D / d), np.log(L)
    lowest, found = np.inf, starts[0]
    for start in starts:
        minimum = least_squares(
            residuals,
            np.clip(start, LOWEST, HIGHEST),
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
    """Return log of the law minus log L per run. All parameters but the exponents are logarithms; N and D are
    logarithms relative to the mean.
    """
    return np.asarray(logsumexp(log_terms(x, N, D), axis=0)) - L


def jacobian(x: Array, N: Array, D: Array, L: Array) -> Array:
    """Return the derivatives of the residuals, (runs, 5)."""
    terms = log_terms(x, N, D)
    shares = np.exp(terms - np.asarray(logsumexp(terms, axis=0)))
    return np.stack([shares[0], shares[1], shares[2], -shares[0] * N, -shares[1] * D], axis=1)


def log_terms(x: Array, N: Array, D: Array) -> Array:
    """Return the logarithms of the law's three terms, (3, runs)."""
    a, b, e, alpha, beta = x
    return np.stack([a - alpha * N, b - beta * D, np.full_like(N, e)])


def bootstrap_laws(runs: Sequence[ScalingRun], law: LawConfig, count: int, seed: int) -> list[LawConfig]:
    """Return `count` laws, each fitted to runs drawn with replacement: their spread is the uncertainty."""
    draws = np.random.default_rng(seed)
    N, D, L = to_columns(runs)
    starts = [(law.alpha, law.beta, min(0.99, law.E / L.min())), *STARTS[::24]]
    laws: list[LawConfig] = []
    while len(laws) < count:
        chosen = draws.integers(len(runs), size=len(runs))
        if len(set(chosen.tolist())) < FEWEST_RUNS - 1:
            continue
        n, d, loss = N[chosen], D[chosen], L[chosen]
        laws.append(fit_from_starts(n, d, loss, [initial_parameters(n, d, loss, *start) for start in starts]))
    return laws


def percentile_interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, [5, 95])
    return float(low), float(high)
