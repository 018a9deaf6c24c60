"""Group runs that differ in their seed alone, find what was varied among groups, and rank them."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from experiments.results import RunResult
from nanogpt import schema
from nanogpt.comparability import agree_in_bits, agree_in_nats, group_results, partition
from nanogpt.config import Metric, TrainConfig
from nanogpt.formatting import format_brief, format_value, shorten
from nanogpt.measurement import Measurement
from nanogpt.schema import change_policy, iter_fields
from nanogpt.statistics import LEVEL, Estimate, estimate_mean
from nanogpt.verdicts import SettingVerdicts, Verdict, judge_settings

SEED = "training.seed"
MAX_TOGETHER = 2  # more keys that change with another are listed in a table of their own
LABELS = {"model": "model.name", "data": "data.name", "optimizer": "optimizer.name", "schedule": "schedule.name"}


@dataclass(frozen=True)
class SeedGroup:
    """Runs with one config and different seeds. `attempt` distinguishes repetitions with the same seeds."""

    results: tuple[RunResult, ...]
    attempt: int = 1
    resolved: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values of keys that configs may spell differently and that mean the same: data source, precision, fp8."""
    dropped: bool = False
    """True if a look found it worse; it then got no more seeds (sweep.until)."""

    @property
    def first(self) -> RunResult:
        return self.results[0]

    @cached_property
    def values(self) -> dict[str, Any]:
        """Return the values of all keys that can change a result, and the names of the config groups."""
        every = dict(schema.iter_values(self.first.config))
        labels = {group: every[key] for group, key in LABELS.items()}
        return {**identity_values(self.first.config), **labels, **self.resolved}

    @property
    def measurement(self) -> Measurement:
        return (self.counted or self.results)[0].measurement

    @property
    def finished(self) -> list[RunResult]:
        return [result for result in self.results if result.complete]

    @property
    def diverged(self) -> bool:
        """Return whether a seed diverged or finished with such a loss; the mean of the others is then too good."""
        return any(
            result.status.state == "diverged" or (result.trouble is not None and result.trouble.diverged)
            for result in self.results
        )

    @property
    def useless(self) -> bool:
        """Return whether every finished run has the loss of a diverged model."""
        return all(result.trouble is not None and result.trouble.diverged for result in self.finished)

    @property
    def counted(self) -> list[RunResult]:
        """Return the runs that numbers are computed from: finished ones, else all that have a loss."""
        return self.finished or [result for result in self.results if result.evals]

    def losses_by_seed(self, metric: Metric) -> dict[int, float]:
        known = ((result.config.training.seed, result.value(metric)) for result in self.counted)
        return {seed: value for seed, value in known if value is not None}

    def losses(self, metric: Metric) -> list[float]:
        return list(self.losses_by_seed(metric).values())

    def loss(self, metric: Metric) -> Estimate | None:
        return estimate_mean(self.losses(metric))

    @property
    def states(self) -> Counter[str]:
        return Counter(result.status.state for result in self.results)

    @property
    def seeds(self) -> list[int]:
        return [result.config.training.seed for result in self.results]


@dataclass(frozen=True)
class VariedKey:
    """A key that was varied, or several that always change together."""

    key: str
    others: tuple[str, ...] = ()
    """The other keys that change with it."""

    @property
    def label_keys(self) -> tuple[str, ...]:
        """Return the keys that labels name: all that change together, unless a config group or many did."""
        return (self.key,) if self.key in LABELS or len(self.others) > MAX_TOGETHER else (self.key, *self.others)

    def value(self, setting: SeedGroup) -> Any:
        return setting.values.get(self.key)

    def text(self, setting: SeedGroup) -> str:
        """Return the exact values of the keys that labels name."""
        return ", ".join(format_value(setting.values.get(key)) for key in self.label_keys)


def group_by_seed(results: Iterable[RunResult], dropped: Collection[str] = ()) -> list[SeedGroup]:
    """Return the groups in the order in which they first appear; a repeated seed starts another attempt. `dropped` has
    names of run directories in settings that a look found worse.
    """
    every = list(results)
    labels = partition([result.measurement for result in every], agree_in_nats)
    groups: dict[tuple[str, int], list[RunResult]] = {}
    resolved: dict[tuple[str, int], dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    for result, label, values in zip(every, labels, resolve_values(every, labels), strict=True):
        setting = identity_values(result.config) | values | {"measured": label}
        seed = setting.pop(SEED)
        rest = json.dumps(setting, sort_keys=True)
        seen[f"{rest} {seed}"] += 1
        key = rest, seen[f"{rest} {seed}"]
        groups.setdefault(key, []).append(result)
        resolved.setdefault(key, values)
    return [
        SeedGroup(tuple(members), key[1], resolved[key], any(result.path.name in dropped for result in members))
        for key, members in groups.items()
    ]


def resolve_values(results: Sequence[RunResult], labels: Sequence[int]) -> list[dict[str, Any]]:
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
    """Groups whose results are comparable, in order."""

    ranked: Sequence[SeedGroup]
    """Those with a finished run, best first."""
    unranked: Sequence[SeedGroup]
    """The others, those that look best first."""
    metric: Metric
    """Metric of the order: the requested one, or bits per byte in its place."""
    title: str = ""
    """Difference from other rankings; empty for the only one."""
    in_nats: bool = True
    """True if losses in nats per token are comparable among them."""
    tolerance: float = 0.0
    """Difference from the best that is equivalent to none."""
    level: float = LEVEL
    """Level of the intervals of differences."""

    @cached_property
    def verdicts(self) -> SettingVerdicts | None:
        """Verdicts on the settings in `fair`, against the best; None if there is nothing to compare."""
        losses = [setting.losses_by_seed(self.metric) for setting in self.fair]
        if len(losses) < 2 or self.best is None:
            return None
        dropped = [i for i, setting in enumerate(self.fair) if setting.dropped]
        return judge_settings(losses, None, self.tolerance, self.level, dropped)

    @cached_property
    def fair(self) -> list[SeedGroup]:
        """Finished groups without a diverged seed, best first."""
        return [setting for setting in self.ranked if not setting.diverged and setting.losses(self.metric)]

    def verdict(self, setting: SeedGroup) -> Verdict | None:
        pairs = zip(self.fair, self.verdicts.verdicts, strict=True) if self.verdicts else ()
        return next((verdict for other, verdict in pairs if other is setting), None)

    @property
    def groups(self) -> list[SeedGroup]:
        return [*self.ranked, *self.unranked]

    @property
    def best(self) -> SeedGroup | None:
        """Return the best group; None if no run is finished or none learnt anything."""
        return self.ranked[0] if self.ranked and not self.ranked[0].useless else None


def rank_groups(
    found: Sequence[SeedGroup], metric: Metric, tolerance: float = 0.0, level: float = LEVEL
) -> tuple[list[Ranking], tuple[str, ...]]:
    """Return rankings of comparable groups, and the notes to print above them."""
    measured = [setting for setting in found if setting.counted]
    grouping = group_results([setting.measurement for setting in measured], metric)
    members = [[measured[i] for i in group.members] for group in grouping.groups] or [[]]
    for setting in found:
        if not setting.counted:  # it belongs to those that its config says it will be comparable with
            home = next((mine for mine in members if mine and may_compare(setting, mine)), members[0])
            home.append(setting)
    if not grouping.groups:
        return [Ranking(*sort_groups(members[0], metric), metric)], ()
    made = [
        Ranking(*sort_groups(mine, group.metric), group.metric, group.title, group.in_nats, tolerance, level)
        for mine, group in zip(members, grouping.groups, strict=True)
    ]
    return made, grouping.notes


def may_compare(setting: SeedGroup, others: Sequence[SeedGroup]) -> bool:
    """Return whether nothing says that a group is not comparable with others."""
    return all(agree_in_bits(setting.measurement, other.measurement) is not False for other in others)


def identity_values(config: TrainConfig) -> dict[str, Any]:
    """Return every key that can change a result, with its value."""
    free = {key for key, about in iter_fields(TrainConfig) if change_policy(about) == "free"}
    return {key: value for key, value in schema.iter_values(config) if key not in free}


def find_varied_keys(found: Sequence[SeedGroup]) -> list[VariedKey]:
    """Return what differs among groups, except seeds. Keys that always change together are one: with model=tiny,baby
    that is `model`, and `others` has everything that these files set.
    """
    patterns: dict[tuple[int, ...], list[str]] = {}
    for key in found[0].values if found else {}:
        texts = [format_value(setting.values[key]) for setting in found]
        pattern = tuple(texts.index(text) for text in texts)
        if key != SEED and any(pattern):
            patterns.setdefault(pattern, []).append(key)
    together = [name_varied_key(keys) for keys in patterns.values() if set(keys) - set(LABELS)]
    return sorted(together, key=lambda axis: list(found[0].values).index(axis.key))


def name_varied_key(keys: Sequence[str]) -> VariedKey:
    """Return them under the name of a config group if several of its keys changed, else under the first key."""
    own = [key for key in keys if key not in LABELS and key not in LABELS.values()]
    named = [group for group in LABELS if group in keys and (len(own) > 1 or not own)]
    first = named[0] if named else (own or list(keys))[0]
    return VariedKey(first, tuple(key for key in own if key != first))


def sort_groups(found: Iterable[SeedGroup], metric: Metric) -> tuple[list[SeedGroup], list[SeedGroup]]:
    """Return groups with a finished run, best first, and the others, most promising first. Groups with a diverged seed
    come after all without: the mean of the other seeds flatters them. Before them come groups that a look dropped.
    """

    def sort_key(setting: SeedGroup) -> tuple[bool, bool, bool, bool, float]:
        loss = setting.loss(metric)
        return loss is None, setting.useless, setting.diverged, setting.dropped, loss.mean if loss else 0.0

    everything = sorted(found, key=sort_key)
    return [s for s in everything if s.finished], [s for s in everything if not s.finished]


def short_names(varied: Sequence[VariedKey]) -> dict[str, str]:
    """Return `lr` for `optimizer.lr`, unless another key ends the same way, of every key that is shown."""
    keys = [key for axis in varied for key in axis.label_keys]
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def short_name(axis: VariedKey, varied: Sequence[VariedKey]) -> str:
    """Return the name of an axis: `lr`, or `n_embd, n_head` of keys that change together."""
    names = short_names(varied)
    return ", ".join(names[key] for key in axis.label_keys)


def format_assignments(setting: SeedGroup, axes: Sequence[VariedKey], varied: Sequence[VariedKey]) -> str:
    """Return the values of some of the varied keys, e.g. `lr=0.001 dropout=0.1`."""
    names = short_names(varied)
    return " ".join(
        f"{names[key]}={shorten(format_brief(setting.values.get(key)), 40)}" for axis in axes for key in axis.label_keys
    )


def group_name(setting: SeedGroup, varied: Sequence[VariedKey]) -> str:
    """Return e.g. `lr=0.001 dropout=0.1`, or the run's name if nothing was varied."""
    attempt = f" (attempt {setting.attempt})" if setting.attempt > 1 else ""
    return (format_assignments(setting, varied, varied) or setting.first.path.name) + attempt
