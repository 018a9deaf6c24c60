"""Settings: runs that differ in their seed alone, what was varied among them, and which are best."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from experiments.results import Result
from experiments.statistics import Estimate, estimate
from nanogpt import schema
from nanogpt.config import Metric, TrainConfig
from nanogpt.schema import change_of, leaves
from nanogpt.tracking.console import shortened

SEED = "training.seed"
LABELS = {"model": "model.name", "data": "data.name", "optimizer": "optimizer.name", "schedule": "schedule.name"}


@dataclass(frozen=True)
class Setting:
    """Runs with one config, each with another seed. `attempt` tells repetitions with the same seeds apart."""

    results: tuple[Result, ...]
    attempt: int = 1

    @property
    def first(self) -> Result:
        return self.results[0]

    @cached_property
    def values(self) -> dict[str, Any]:
        """Science keys with their values, and the labels of the groups."""
        config = self.first.config
        return science(config) | {group: labelled(config, key) for group, key in LABELS.items()}

    @property
    def finished(self) -> list[Result]:
        return [result for result in self.results if result.whole]

    @property
    def diverged(self) -> bool:
        """Whether a seed didn't come through: the mean of those that did is that of a choice of them."""
        return any(result.progress.state == "diverged" for result in self.results)

    @property
    def counted(self) -> list[Result]:
        """Those that numbers are made of: the finished ones, or as long as there is none all that have a loss."""
        return self.finished or [result for result in self.results if result.evals]

    def losses(self, metric: Metric) -> list[float]:
        return [loss for result in self.counted if (loss := result.loss(metric)) is not None]

    def loss(self, metric: Metric) -> Estimate | None:
        return estimate(self.losses(metric))

    @property
    def bits(self) -> Estimate | None:
        """Bits per byte at the end."""
        found = [result.last["val_bpb"] for result in self.counted if result.last and "val_bpb" in result.last]
        return estimate(found)

    @property
    def states(self) -> Counter[str]:
        return Counter(result.progress.state for result in self.results)

    @property
    def seeds(self) -> list[int]:
        return [result.config.training.seed for result in self.results]


@dataclass(frozen=True)
class Axis:
    """Something that was varied: a key, or several that always change together."""

    key: str
    along: tuple[str, ...] = ()
    """The other keys that change with it."""

    def value(self, setting: Setting) -> Any:
        return setting.values.get(self.key)


def settings(results: Iterable[Result]) -> list[Setting]:
    """The settings in the order in which they first appear; a seed that appears twice belongs to another attempt."""
    groups: dict[tuple[str, int], list[Result]] = {}
    seen: Counter[str] = Counter()
    for result in results:
        values = science(result.config)
        seed = values.pop(SEED)
        rest = json.dumps(values, sort_keys=True)
        seen[f"{rest} {seed}"] += 1
        groups.setdefault((rest, seen[f"{rest} {seed}"]), []).append(result)
    return [Setting(tuple(members), attempt) for (_, attempt), members in groups.items()]


def science(config: TrainConfig) -> dict[str, Any]:
    """Every key that can change a result, with its value."""
    free = {key for key, field in leaves(TrainConfig) if change_of(field) == "free"}
    return {key: value for key, value in schema.values(config) if key not in free and not key.startswith("hardware.")}


def labelled(config: TrainConfig, key: str) -> Any:
    return dict(schema.values(config))[key]


def axes(found: Sequence[Setting]) -> list[Axis]:
    """What differs among settings, seeds apart. Keys that can't be told apart are one axis: with model=tiny,baby that
    is `model`, and everything that these files set is along.
    """
    patterns: dict[tuple[int, ...], list[str]] = {}
    for key in found[0].values if found else ():
        texts = [shown(setting.values[key]) for setting in found]
        pattern = tuple(texts.index(text) for text in texts)
        if key != SEED and any(pattern):
            patterns.setdefault(pattern, []).append(key)
    together = [axis_of(keys) for keys in patterns.values() if set(keys) - set(LABELS)]
    return sorted(together, key=lambda axis: list(science(found[0].first.config) | LABELS).index(axis.key))


def axis_of(keys: Sequence[str]) -> Axis:
    """Named by the label of a group if several of its keys changed, else by the first key."""
    own = [key for key in keys if key not in LABELS and key not in LABELS.values()]
    named = [group for group in LABELS if group in keys and (len(own) > 1 or not own)]
    first = named[0] if named else (own or list(keys))[0]
    return Axis(first, tuple(key for key in own if key != first))


def ranked(found: Iterable[Setting], metric: Metric) -> tuple[list[Setting], list[Setting]]:
    """(those with a finished run, best first; the others, those that look best first). Where a seed diverged, a setting
    comes after all where none did: what diverges now and then is no better for being good otherwise.
    """

    def order(setting: Setting) -> tuple[bool, bool, float]:
        loss = setting.loss(metric)
        return loss is None, setting.diverged, loss.mean if loss else 0.0

    everything = sorted(found, key=order)
    return [s for s in everything if s.finished], [s for s in everything if not s.finished]


def shown(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, tuple | list):
        return f"[{','.join(map(shown, value))}]"  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def brief(value: Any) -> str:
    """A value for a label: of a number that was drawn at random the first digits."""
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def short(axis: Axis, others: Sequence[Axis]) -> str:
    """`lr` for `optimizer.lr`, unless another axis ends so too."""
    end = axis.key.rpartition(".")[2]
    return end if [one.key.rpartition(".")[2] for one in others].count(end) == 1 else axis.key


def unusual(found: Sequence[Setting], varied: Sequence[Axis]) -> Callable[[Setting], str]:
    """What of a setting is unlike most of them: `conv=[] lr=0.01`, or `as most`."""
    usual = {axis: Counter(shown(axis.value(one)) for one in found).most_common(1)[0][0] for axis in varied}

    def told(setting: Setting) -> str:
        odd = [axis for axis in varied if shown(axis.value(setting)) != usual[axis]]
        return " ".join(f"{short(axis, varied)}={brief(axis.value(setting))}" for axis in odd) or "as most"

    return told


def name(setting: Setting, varied: Sequence[Axis]) -> str:
    """`lr=0.001 dropout=0.1`, or where nothing was varied the run's name."""
    words = [f"{short(axis, varied)}={shortened(brief(axis.value(setting)), 40)}" for axis in varied]
    attempt = f" (attempt {setting.attempt})" if setting.attempt > 1 else ""
    return (" ".join(words) or setting.first.path.name) + attempt
