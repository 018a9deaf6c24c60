"""Chinchilla's laws (Hoffmann et al. 2022): loss of N parameters after D tokens, best N and D for C FLOPs."""

import math
from dataclasses import dataclass

from nanogpt.config import LawConfig
from nanogpt.errors import BadInput

FLOPS_PER_PARAMETER = 6.0  # and token, C = 6 N D

# Their approach 2: the best number of tokens for some numbers of parameters (table A3).
PUBLISHED_OPTIMA = [
    (400e6, 7.7e9),
    (1e9, 20.0e9),
    (10e9, 219.5e9),
    (67e9, 1.7e12),
    (175e9, 4.3e12),
    (280e9, 7.1e12),
    (520e9, 13.4e12),
    (1e12, 26.5e12),
    (10e12, 292.0e12),
]


@dataclass(frozen=True)
class Optimum:
    """The best model of a budget."""

    flops: float
    n_params: float
    tokens: float
    loss: float


def predict_loss(law: LawConfig, n_params: float, tokens: float) -> float:
    return law.E + law.A / n_params**law.alpha + law.B / tokens**law.beta


def find_optimum(law: LawConfig, flops: float, factor: float = FLOPS_PER_PARAMETER) -> Optimum:
    """Return the minimum of the loss for a budget, C = factor N D, in closed form (equation 4 of the paper).

    Raises BadInput for constants whose optimum can't be computed.
    """
    try:
        n_params = balance(law) * (flops / factor) ** (law.beta / (law.alpha + law.beta))
        tokens = flops / factor / n_params
        found = Optimum(flops, n_params, tokens, predict_loss(law, n_params, tokens))
    except (OverflowError, ZeroDivisionError):
        raise no_optimum_error(law) from None
    if not all(0 < number < math.inf for number in (n_params, tokens)):
        raise no_optimum_error(law)
    return found


def find_optimum_of_size(law: LawConfig, n_params: float, factor: float = FLOPS_PER_PARAMETER) -> Optimum:
    """Return the budget that a model size is the best for. Raises BadInput as `optimum`."""
    try:
        flops = factor * (n_params / balance(law)) ** ((law.alpha + law.beta) / law.beta)
    except (OverflowError, ZeroDivisionError):
        raise no_optimum_error(law) from None
    return find_optimum(law, flops, factor)


def balance(law: LawConfig) -> float:
    """Return G of equation 4, which sets parameters against tokens. Raises OverflowError, ZeroDivisionError."""
    return (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))


def no_optimum_error(law: LawConfig) -> BadInput:
    """Return the error for constants so extreme that the best size isn't a number."""
    given = ", ".join(f"law.{name}={value:g}" for name, value in law.model_dump().items())
    return BadInput(f"{given}: the best size is too large or too small to compute; usual exponents are 0.2 to 0.5")


def fit_published_line() -> tuple[float, float]:
    """Return (slope, intercept) of log10 D over log10 N through the published optima."""
    import numpy as np

    n_params, tokens = zip(*PUBLISHED_OPTIMA, strict=True)
    slope, intercept = np.polyfit(np.log10(n_params), np.log10(tokens), 1)
    return float(slope), float(intercept)


def published_tokens(n_params: float) -> float:
    """Return the best number of tokens for a model size by approach 2."""
    slope, intercept = fit_published_line()
    return 10 ** (intercept + slope * math.log10(n_params))
