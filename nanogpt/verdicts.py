"""Verdicts on settings by their seeds: better or worse than a reference, equivalent to it, or not told apart from it.

Settings share one variance of a run's loss unless Bartlett's test (1937) contradicts, and where an F test finds that
seeds differ alike in all settings, that part is removed. Intervals are simultaneous over all pairs of settings (Tukey
1949, Kramer 1956; with different variances Games and Howell 1976): they hold although the reference, where it is the
best, was chosen by the same losses.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

from nanogpt.statistics import LEVEL, f_pvalue, mean, t_probability, t_quantile, variance

Losses = Mapping[int, float]
"""Loss of each seed of a setting."""

CONTRADICTION = 0.01  # p of equal variances below which not all settings share one
AGREEMENT = 0.2  # p above which those that are left share one
BLOCKS = 0.01  # p below which differences between seeds are removed
POWER_QUANTILE = 0.8416  # of the normal distribution: the advised seeds tell the difference with probability 0.8
DRAWS = 4000  # of the bootstrap
MOST_SEEDS = 100  # that are advised
LOOKS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)  # seeds at which a study that adds seeds is judged
PLANNED_LEVEL = 0.97  # of intervals where the same noise planned the seeds: they hold with 95 % (by simulation)
LOOK_LEVEL = 0.995  # of the intervals at each look: all looks together hold with 95 % (Pocock 1977; by simulation)


@dataclass(frozen=True)
class Noise:
    """Variance of a run's loss in each setting."""

    variances: Sequence[float]
    freedom: Sequence[float]
    """Degrees of freedom of each variance."""
    shared: frozenset[int]
    """Settings that share one variance. Those with one seed are taken to vary like these."""
    blocked: bool = False
    """True if differences between seeds that all settings have in common are removed."""


@dataclass(frozen=True)
class Verdict:
    """A setting against the reference."""

    kind: Literal["reference", "better", "worse", "equivalent", "undecided"]
    difference: float
    """Mean loss minus that of the reference."""
    half: float | None
    """Half the width of the difference's simultaneous 95 % interval; None if nothing is known about noise."""
    seeds: int | None = None
    """Seeds per setting with which a difference of this size is detected with probability 0.8; None if decided."""


@dataclass(frozen=True)
class SettingVerdicts:
    """All settings against one of them, the reference."""

    reference: int
    verdicts: Sequence[Verdict]
    noise: Noise | None
    """None if no setting has two seeds, or nothing varies."""
    near: Sequence[tuple[float, float]] = ()
    """Mean and standard error of each that is not worse; empty for a given reference, or without noise."""

    @cached_property
    def corrected_mean(self) -> float | None:
        """Mean loss of the best without the luck that made it the best; None if `near` is empty."""
        means = [mean for mean, _ in self.near]
        return min(means) + estimate_luck(means, [error for _, error in self.near]) if means else None


def judge_settings(
    settings: Sequence[Losses],
    reference: int | None = None,
    tolerance: float = 0.0,
    level: float = LEVEL,
    dropped: Collection[int] = (),
) -> SettingVerdicts:
    """Return a verdict on each setting against `reference`, or against the one with the lowest mean loss.

    `equivalent` is a setting whose interval lies within `tolerance`. Each setting has at least one loss, all finite.
    Settings that an earlier look `dropped` stay worse and are not the reference.
    """
    means = [mean(list(losses.values())) for losses in settings]
    noise, sizes = estimate_noise(settings), [len(losses) for losses in settings]
    left = [i for i in range(len(means)) if i not in dropped]
    base = min(left, key=means.__getitem__) if reference is None else reference
    verdicts = [
        Verdict("reference", 0.0, None)
        if i == base
        else judge(m - means[base], noise, (i, base), sizes, tolerance, level)
        for i, m in enumerate(means)
    ]
    verdicts = [replace(v, kind="worse", seeds=None) if i in dropped else v for i, v in enumerate(verdicts)]
    if noise is None or reference is not None:
        return SettingVerdicts(base, verdicts, noise)
    near = [i for i, verdict in enumerate(verdicts) if verdict.kind != "worse"]
    errors = [math.sqrt(noise.variances[i] / sizes[i]) for i in near]
    return SettingVerdicts(base, verdicts, noise, [(means[i], error) for i, error in zip(near, errors, strict=True)])


def judge(
    difference: float,
    noise: Noise | None,
    pair: tuple[int, int],
    sizes: Sequence[int],
    tolerance: float,
    level: float = LEVEL,
) -> Verdict:
    """Return the verdict on a difference between the two settings of `pair`."""
    if noise is None:
        return Verdict("undecided", difference, None)
    error, factor = interval_parts(noise, pair, sizes, level)
    half = factor * error
    if abs(difference) + half <= tolerance:
        return Verdict("equivalent", difference, half)
    if abs(difference) > half:
        return Verdict("worse" if difference > 0 else "better", difference, half)
    spread = math.sqrt(sum(noise.variances[i] for i in pair))
    seeds = math.ceil(((factor + POWER_QUANTILE) * spread / difference) ** 2) if difference else None
    return Verdict("undecided", difference, half, seeds)


def decision_chance(
    judged: SettingVerdicts, setting: int, sizes: Sequence[int], most: int, tolerance: float, level: float = LEVEL
) -> float:
    """Return the probability that a setting which is not told apart from the reference would be, or would be
    equivalent, if both had `most` seeds instead of their `sizes`.

    It is predicted from the losses so far, without knowledge beyond them (Spiegelhalter, Freedman and Blackburn 1986).
    """
    noise, pair, verdict = judged.noise, (setting, judged.reference), judged.verdicts[setting]
    if noise is None:
        return 1.0
    final, _ = standard_error(noise, pair, [most] * len(sizes))
    error, freedom = standard_error(noise, pair, sizes)
    if error <= final:
        return 0.0
    to_come = math.sqrt(error**2 - final**2)  # standard deviation of the change of the difference
    half = final * tukey_quantile(len(sizes), math.inf, level) / math.sqrt(2)

    def below(limit: float) -> float:
        return t_probability((limit - abs(verdict.difference)) / to_come, freedom)

    within = max(0.0, tolerance - half)
    return 1 - below(half) + below(-half) + below(within) - below(-within)


def count_seeds(variance: float, difference: float, most: int, level: float = LEVEL) -> int:
    """Return the seeds per setting with which two settings that differ by `difference` are told apart with probability
    0.8 by intervals of a level; at least 2 and at most `most`.
    """
    error = math.sqrt(2 * variance)
    for n in range(2, most):
        if (t_quantile(2 * n - 2, level) + POWER_QUANTILE) * error <= difference * math.sqrt(n):
            return n
    return most


def describe_verdict(verdict: Verdict, reference: str = "") -> str:
    """Return e.g. `worse`, or `not told apart (12 seeds would)`, or the word for the reference."""
    if verdict.kind == "reference":
        return reference
    if verdict.kind != "undecided":
        return verdict.kind
    if verdict.half is None:
        return "not known (one seed)"
    few = verdict.seeds is not None and verdict.seeds <= MOST_SEEDS
    return f"not told apart ({verdict.seeds if few else f'over {MOST_SEEDS}'} seeds would)"


def describe_noise(noise: Noise | None, names: Sequence[str]) -> str:
    """Return what the intervals of settings with these names are computed from."""
    if noise is None:
        return "With one seed each, nothing is known about noise: train more, e.g. training.seed=1,2,3 in a sweep."
    words = "± is half of a 95 % interval: of a loss by itself, of differences all together (Tukey). "
    if noise.blocked:
        return f"{words}The spread is that over seeds, without what all settings have in common."
    apart = [name for i, name in enumerate(names) if i not in noise.shared]
    if not apart:
        return f"{words}The spread over seeds is pooled over all settings."
    listed = ", ".join(apart[:3]) + (f" and {len(apart) - 3} more" if len(apart) > 3 else "")
    return f"{words}The spread over seeds is pooled, except that of {listed}, which differs."


def interval_parts(noise: Noise, pair: tuple[int, int], sizes: Sequence[int], level: float) -> tuple[float, float]:
    """Return the standard error of the difference of two means, and half the interval's width in such errors."""
    error, freedom = standard_error(noise, pair, sizes)
    return error, tukey_quantile(len(sizes), math.floor(freedom * 2) / 2, level) / math.sqrt(2)  # few values, cached


def standard_error(noise: Noise, pair: tuple[int, int], sizes: Sequence[int]) -> tuple[float, float]:
    """Return the standard error of the difference of two means, and its degrees of freedom (Welch 1947)."""
    parts = [noise.variances[i] / sizes[i] for i in pair]
    if set(pair) <= noise.shared:
        return math.sqrt(sum(parts)), noise.freedom[pair[0]]
    freedom = sum(parts) ** 2 / sum(part**2 / noise.freedom[i] for part, i in zip(parts, pair, strict=True))
    return math.sqrt(sum(parts)), freedom


@lru_cache(maxsize=10_000)
def tukey_quantile(settings: int, freedom: float, level: float = LEVEL) -> float:
    """Return a quantile of the studentized range."""
    from scipy.stats import studentized_range  # seconds to import

    return float(studentized_range.ppf(level, settings, freedom))


def estimate_noise(settings: Sequence[Losses]) -> Noise | None:
    """Return the noise of runs; None if no setting has two seeds, or nothing varies."""
    values = [list(losses.values()) for losses in settings]
    own = {i: variance(group) for i, group in enumerate(values) if len(group) > 1}
    pool = sorted((i for i in own if own[i] > 0), key=own.__getitem__)
    if not pool:
        return None
    limit = CONTRADICTION
    while len(pool) > 1 and variances_pvalue([values[i] for i in pool]) < limit:
        pool.pop()  # the largest
        limit = AGREEMENT
    freedom = sum(len(values[i]) - 1 for i in pool)
    common = sum(own[i] * (len(values[i]) - 1) for i in pool) / freedom
    apart = {i for i in own if own[i] > own[pool[-1]]}
    shared = frozenset(range(len(settings))) - apart
    if not apart and (blocked := remove_blocks(settings)):
        return Noise([blocked[0]] * len(settings), [blocked[1]] * len(settings), shared, blocked=True)
    variances = [own[i] if i in apart else common for i in range(len(settings))]
    return Noise(variances, [len(values[i]) - 1 if i in apart else freedom for i in range(len(settings))], shared)


def variances_pvalue(groups: Sequence[Sequence[float]]) -> float:
    from scipy.stats import bartlett

    return float(bartlett(*groups).pvalue)


def remove_blocks(settings: Sequence[Losses]) -> tuple[float, float] | None:
    """Return variance and degrees of freedom without differences between seeds; None if no such differences show.

    Needs the same seeds, two or more, in two or more settings.
    """
    import numpy as np

    seeds = sorted(settings[0])
    if len(settings) < 2 or len(seeds) < 2 or any(sorted(losses) != seeds for losses in settings):
        return None
    table = np.array([[losses[seed] for seed in seeds] for losses in settings])
    blocks = table.mean(0) - table.mean()
    rest = table - table.mean(1, keepdims=True) - blocks
    freedom = (len(settings) - 1) * (len(seeds) - 1)
    residual = float((rest**2).sum()) / freedom
    between = float((blocks**2).sum()) * len(settings) / (len(seeds) - 1)
    if residual == 0 or f_pvalue(between / residual, len(seeds) - 1, freedom) >= BLOCKS:
        return None
    return residual, freedom


def estimate_luck(means: Sequence[float], errors: Sequence[float]) -> float:
    """Return by how much the lowest of some means is expected to be below its true value (the winner's curse).

    Bootstrap around means that are drawn together, as their spread has a part of noise.
    """
    import numpy as np

    found, error = np.array(means), np.array(errors)
    spread = float(found.var(ddof=1)) if len(means) > 1 else 0.0
    kept = math.sqrt(max(0.0, 1 - float((error**2).mean()) / spread)) if spread else 0.0
    true = found.mean() + kept * (found - found.mean())
    draws = np.random.default_rng(0).normal(true, error, (DRAWS, len(means)))
    winners = draws.argmin(1)
    return float((true[winners] - draws.min(1)).mean())
