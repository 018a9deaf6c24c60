"""Settings: runs that differ in their seed alone, what was varied among them, and which are best."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from experiments.results import Result
from experiments.statistics import Estimate, estimate
from nanogpt import schema
from nanogpt.comparability import agree_in_bits, agree_in_nats, group_results, partition
from nanogpt.config import Metric, TrainConfig
from nanogpt.console import shorten
from nanogpt.measurement import Measurement
from nanogpt.schema import change_policy, iter_fields

SEED = "training.seed"
LABELS = {"model": "model.name", "data": "data.name", "optimizer": "optimizer.name", "schedule": "schedule.name"}


@dataclass(frozen=True)
class Setting:
    """Runs with one config, each with another seed. `attempt` tells repetitions with the same seeds apart."""

    results: tuple[Result, ...]
    attempt: int = 1
    resolved: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values of keys that configs may spell differently and that mean the same: data source, precision, fp8."""

    @property
    def first(self) -> Result:
        return self.results[0]

    @cached_property
    def values(self) -> dict[str, Any]:
        """Science keys with their values, and the labels of the groups."""
        return {
            **science(self.first.config),
            **{group: labelled(self.first.config, key) for group, key in LABELS.items()},
            **self.resolved,
        }

    @property
    def measurement(self) -> Measurement:
        """What its numbers were measured on."""
        return (self.counted or self.results)[0].measurement

    @property
    def finished(self) -> list[Result]:
        return [result for result in self.results if result.whole]

    @property
    def diverged(self) -> bool:
        """Whether a seed diverged, or finished with a loss of one that did: the mean of the others flatters."""
        return any(
            result.progress.state == "diverged" or (result.trouble is not None and result.trouble.diverged)
            for result in self.results
        )

    @property
    def useless(self) -> bool:
        """Whether every finished run ended with a loss of a model that diverged."""
        return all(result.trouble is not None and result.trouble.diverged for result in self.finished)

    @property
    def counted(self) -> list[Result]:
        """Those that numbers are made of: the finished ones, or as long as there is none all that have a loss."""
        return self.finished or [result for result in self.results if result.evals]

    def losses(self, metric: Metric) -> list[float]:
        return [value for result in self.counted if (value := result.value(metric)) is not None]

    def loss(self, metric: Metric) -> Estimate | None:
        return estimate(self.losses(metric))

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
    every = list(results)
    labels = partition([result.measurement for result in every], agree_in_nats)
    groups: dict[tuple[str, int], list[Result]] = {}
    resolved: dict[tuple[str, int], dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    for result, label, values in zip(every, labels, resolve_values(every, labels), strict=True):
        setting = science(result.config) | values | {"measured": label}
        seed = setting.pop(SEED)
        rest = json.dumps(setting, sort_keys=True)
        seen[f"{rest} {seed}"] += 1
        key = rest, seen[f"{rest} {seed}"]
        groups.setdefault(key, []).append(result)
        resolved.setdefault(key, values)
    return [Setting(tuple(members), key[1], resolved[key]) for key, members in groups.items()]


def resolve_values(results: Sequence[Result], labels: Sequence[int]) -> list[dict[str, Any]]:
    """Return the values of keys whose spelling does not matter: the source of data with the same content is spelled as
    in its first result, and precision and fp8 are those that were used. `labels` say who was measured alike.
    """
    sources: dict[str, str | None] = {}
    starts: dict[str, str] = {}
    contents = [result.measurement.data or result.config.data.source_sha256 for result in results]
    used: dict[int, tuple[str | None, bool | None]] = {}
    for result, label in zip(results, labels, strict=True):
        precision, fp8 = used.get(label, (None, None))
        about = result.measurement
        used[label] = about.precision if precision is None else precision, about.fp8 if fp8 is None else fp8
    known = {precision for precision, _ in used.values() if precision is not None}
    only = known.pop() if len(known) == 1 else None  # what was not recorded does not count as another precision
    return [
        {
            "data.source": sources.setdefault(content or str(result.path), result.config.data.source),
            "data.source_sha256": None,
            "init_from": starts.setdefault(result.config.init_from_sha256 or str(result.path), result.config.init_from),
            "init_from_sha256": None,
            "hardware.precision": used[label][0] or only,
            "hardware.fp8": bool(used[label][1]),
        }
        for result, label, content in zip(results, labels, contents, strict=True)
    ]


@dataclass(frozen=True)
class Ranking:
    """Settings whose results are comparable, in order."""

    good: Sequence[Setting]
    """Those with a finished run, best first."""
    rest: Sequence[Setting]
    """The others, those that look best first."""
    metric: Metric
    """What they are ranked by: what was asked for, or bits per byte in its place."""
    title: str = ""
    """What sets them apart from other rankings; empty for the only one."""
    in_nats: bool = True
    """Whether losses in nats per token are comparable among them."""

    @property
    def every(self) -> list[Setting]:
        return [*self.good, *self.rest]

    @property
    def best(self) -> Setting | None:
        """The best setting; None where no run is finished, or none learnt anything."""
        return self.good[0] if self.good and not self.good[0].useless else None


def rankings(found: Sequence[Setting], metric: Metric) -> tuple[list[Ranking], tuple[str, ...]]:
    """Return the settings ranked in comparable groups, and what is to be said above them."""
    measured = [setting for setting in found if setting.counted]
    grouping = group_results([setting.measurement for setting in measured], metric)
    members = [[measured[i] for i in group.members] for group in grouping.groups] or [[]]
    for setting in found:
        if not setting.counted:  # it belongs to those that its config says it will be comparable with
            home = next((mine for mine in members if mine and may_compare(setting, mine)), members[0])
            home.append(setting)
    if not grouping.groups:
        return [Ranking(*ranked(members[0], metric), metric)], ()
    made = [
        Ranking(*ranked(mine, group.metric), group.metric, group.title, group.in_nats)
        for mine, group in zip(members, grouping.groups, strict=True)
    ]
    return made, grouping.notes


def may_compare(setting: Setting, others: Sequence[Setting]) -> bool:
    """Whether nothing says that a setting is not comparable with others."""
    return all(agree_in_bits(setting.measurement, other.measurement) is not False for other in others)


def science(config: TrainConfig) -> dict[str, Any]:
    """Every key that can change a result, with its value."""
    free = {key for key, about in iter_fields(TrainConfig) if change_policy(about) == "free"}
    return {key: value for key, value in schema.iter_values(config) if key not in free}


def labelled(config: TrainConfig, key: str) -> Any:
    return dict(schema.iter_values(config))[key]


def axes(found: Sequence[Setting]) -> list[Axis]:
    """What differs among settings, seeds apart. Keys that can't be told apart are one axis: with model=tiny,baby that
    is `model`, and everything that these files set is along.
    """
    patterns: dict[tuple[int, ...], list[str]] = {}
    for key in found[0].values if found else {}:
        texts = [shown(setting.values[key]) for setting in found]
        pattern = tuple(texts.index(text) for text in texts)
        if key != SEED and any(pattern):
            patterns.setdefault(pattern, []).append(key)
    together = [axis_of(keys) for keys in patterns.values() if set(keys) - set(LABELS)]
    return sorted(together, key=lambda axis: list(found[0].values).index(axis.key))


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

    def order(setting: Setting) -> tuple[bool, bool, bool, float]:
        loss = setting.loss(metric)
        return loss is None, setting.useless, setting.diverged, loss.mean if loss else 0.0

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
    words = [f"{short(axis, varied)}={shorten(brief(axis.value(setting)), 40)}" for axis in varied]
    attempt = f" (attempt {setting.attempt})" if setting.attempt > 1 else ""
    return (" ".join(words) or setting.first.path.name) + attempt
