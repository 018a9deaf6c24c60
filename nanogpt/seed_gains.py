"""Further seeds that narrow the intervals of differences that are not told apart, the best for their cost first."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nanogpt.statistics import LEVEL
from nanogpt.verdicts import Noise, SettingVerdicts, interval_parts


@dataclass(frozen=True)
class SeedGain:
    """One more seed for some settings, after those of earlier gains."""

    settings: list[int]
    half_width: float
    """Half of the width of the widest interval of a difference that is not told apart, without the seed."""
    half_width_then: float
    """Half of the width of this interval with the seed."""
    gain: float
    """Sum over all differences that are not told apart by which their half widths shrink."""


def choose_seeds(
    judged: SettingVerdicts, sizes: Sequence[int], costs: Sequence[float], most: int, level: float = LEVEL
) -> list[SeedGain]:
    """Return the seeds that narrow the intervals of undecided differences most for their cost, one after the other.

    `sizes` are the seeds of each setting, `costs` those of one more. Where differences between seeds are removed, all
    settings get the seed. A setting whose difference exceeds its new interval counts as decided.
    """
    noise, counts, base = judged.noise, list(sizes), judged.reference
    gaps = {i: abs(v.difference) for i, v in enumerate(judged.verdicts) if v.kind == "undecided"}
    chosen: list[SeedGain] = []
    while noise and gaps and len(chosen) < most:
        now = find_half_widths(noise, base, counts, gaps, level)
        options = [list(range(len(counts)))] if noise.blocked else [[base], *([i] for i in gaps)]
        shrunk: list[tuple[float, Noise, list[int], Mapping[int, float], list[int]]] = []
        for option in options:
            more = add_freedom(noise, option), [count + (i in option) for i, count in enumerate(counts)]
            then = find_half_widths(more[0], base, more[1], gaps, level)
            rate = (sum(now.values()) - sum(then.values())) / sum(costs[i] for i in option)
            shrunk.append((rate, *more, then, option))
        _, noise, counts, then, option = max(shrunk, key=lambda choice: choice[0])
        widest = max(now, key=now.__getitem__)
        chosen.append(SeedGain(option, now[widest], then[widest], sum(now.values()) - sum(then.values())))
        gaps = {i: gap for i, gap in gaps.items() if gap <= then[i]}
    return chosen


def find_half_widths(
    noise: Noise, base: int, sizes: Sequence[int], others: Iterable[int], level: float
) -> dict[int, float]:
    """Return half the width of the interval of each difference from `base`."""
    parts = {i: interval_parts(noise, (i, base), sizes, level) for i in others}
    return {i: error * factor for i, (error, factor) in parts.items()}


def add_freedom(noise: Noise, settings: Sequence[int]) -> Noise:
    """Return noise with the degrees of freedom that one more seed of some settings adds."""
    shared = len(settings) - 1 if noise.blocked else len(noise.shared.intersection(settings))
    more = [shared if i in noise.shared else int(i in settings) for i in range(len(noise.freedom))]
    return replace(noise, freedom=[freedom + add for freedom, add in zip(noise.freedom, more, strict=True)])
