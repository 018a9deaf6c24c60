"""Decide whether the results of several runs are comparable, and in which unit.

Losses in nats per token are comparable if tokenizer, evaluated windows, precision and fp8 are equal. Bits per byte are
also comparable if the tokenizer or the windows differ, provided that the validation text is the same. Other results are
not comparable: another text has another entropy, and another precision gives other numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nanogpt.config import Metric
from nanogpt.measurement import Measurement, read_recorded

Unit = Literal["nats", "bits_per_byte"]
Same = bool | None
"""True if two measurements agree, None if that is not recorded."""
Agree = Callable[[Measurement, Measurement], Same]
IN_BITS: dict[Metric, Metric] = {
    "val_loss": "val_bpb",
    "best_val_loss": "best_val_bpb",
    "val_bpb": "val_bpb",
    "best_val_bpb": "best_val_bpb",
}
WHOLE = 0.99  # windows that predict this fraction of the text count as all of it: the last window is rarely full
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Comparability:
    """Unit in which results are comparable, and the reason why not in another."""

    unit: Unit | None
    """None: not comparable."""
    reason: str
    """Description of the differences; "" if there are none."""
    note: str = ""
    """Caveat if the comparison is approximate."""

    def json_fields(self) -> dict[str, str | None]:
        """Return what `format=json` shows."""
        return {"unit": self.unit, "reason": self.reason or None, "note": self.note or None}


@dataclass(frozen=True)
class Group:
    """Results that are ranked together."""

    members: tuple[int, ...]
    """Indices in the list that was grouped."""
    metric: Metric
    title: str
    """Difference from the other groups; "" for a single group."""
    in_nats: bool
    """True if their losses in nats per token are comparable."""


@dataclass(frozen=True)
class Grouping:
    """Comparable groups of results."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    """Sentences for the top of the ranking: what is not comparable, or only in bits per byte."""


def compare_measurements(found: Sequence[Measurement]) -> Comparability:
    """Return the unit in which all results are comparable, or None, with the reason."""
    reason = describe_differences(found)
    if len(set(partition(found, agree_in_nats))) <= 1:
        return Comparability("nats", "")
    if len(set(partition(found, agree_in_bits))) <= 1:
        return Comparability("bits_per_byte", reason, approximation_note(found))
    return Comparability(None, reason)


def group_results(found: Sequence[Measurement], metric: Metric) -> Grouping:
    """Return groups of comparable results, each ranked by `metric` or its counterpart in bits per byte."""
    in_bits = IN_BITS[metric] == metric
    labels = partition(found, agree_in_bits)
    groups: list[Group] = []
    notes: list[str] = []
    for label in dict.fromkeys(labels):
        members = tuple(i for i, other in enumerate(labels) if other == label)
        mine = [found[i] for i in members]
        verdict = compare_measurements(mine)
        title = describe_group(members, found) if len(set(labels)) > 1 else ""
        where = f"{title}: " if title else ""
        if verdict.unit == "bits_per_byte" and not in_bits:
            notes.append(f"{where}ranked by bits per byte, because {verdict.reason}.")
        if verdict.note:
            notes.append(f"{where}{verdict.note}")
        in_nats = verdict.unit == "nats"
        groups.append(Group(members, metric if in_nats else IN_BITS[metric], title, in_nats))
    if len(groups) > 1:
        reason = describe_differences(found)
        notes.insert(0, f"Not all results are comparable, because {reason}: {len(groups)} separate rankings.")
    return Grouping(tuple(groups), tuple(notes))


def agree_in_nats(a: Measurement, b: Measurement) -> Same:
    """Return whether two losses in nats per token are comparable."""
    return all_of(agree_in_arithmetic(a, b), agree_in_tokenizer(a, b), agree_in_windows(a, b))


def agree_in_bits(a: Measurement, b: Measurement) -> Same:
    """Return whether two results in bits per byte are comparable."""
    return all_of(agree_in_arithmetic(a, b), agree_in_text(a, b))


def agree_in_arithmetic(a: Measurement, b: Measurement) -> Same:
    """Return whether precision and fp8 are equal."""
    return all_of(equal(a.precision, b.precision), equal(a.fp8, b.fp8))


def agree_in_tokenizer(a: Measurement, b: Measurement) -> Same:
    """Return whether the tokenizers are equal."""
    if (known := equal(a.tokenizer, b.tokenizer)) is not None:
        return known
    same = (a.tokenizer_name, a.asked_vocab_size) == (b.tokenizer_name, b.asked_vocab_size)
    return None if same else False


def agree_in_windows(a: Measurement, b: Measurement) -> Same:
    """Return whether the same windows were evaluated."""
    if (known := equal(a.windows, b.windows)) is not None:
        return known
    if (a.block_size, a.eval_tokens) != (b.block_size, b.eval_tokens):
        return False
    if (known := equal(a.data, b.data)) is not None:
        return known
    return None if a.source == b.source else False


def agree_in_text(a: Measurement, b: Measurement) -> Same:
    """Return whether the validation texts are the same."""
    if (known := equal(a.text, b.text)) is not None:
        return known
    if equal(a.data, b.data):
        return True
    if equal(a.data, b.data) is False and agree_in_tokenizer(a, b) is not False:
        return False  # the same tokenizer made other tokens
    return None if a.source == b.source else False


def equal(a: object, b: object) -> Same:
    """Return whether two facts are equal, None if either is not recorded."""
    return None if a is None or b is None else a == b


def all_of(*facts: Same) -> Same:
    """Return False if any fact is False, else None if any is unknown, else True."""
    return False if False in facts else None if None in facts else True


def partition(found: Sequence[Measurement], agree: Agree) -> list[int]:
    """Return a label for every measurement; those with the same label agree.

    A measurement without records is taken to agree with those that asked for the same, unless they differ among
    themselves, so that its group is unknown.
    """
    classes: list[list[Measurement]] = []
    for new in dict.fromkeys(found):
        same = [members for members in classes if any(agree(new, other) for other in members)]
        classes = [members for members in classes if members not in same]
        classes.append([*(member for members in same for member in members), new])
    merged = merge_unrecorded(classes, agree)
    label_of = {member: label for label, members in enumerate(merged) for member in members}
    return [label_of[measurement] for measurement in found]


def merge_unrecorded(classes: list[list[Measurement]], agree: Agree) -> list[list[Measurement]]:
    """Merge classes that may agree, if there is only one way to do so."""

    def may_agree(members: list[Measurement], others: list[Measurement]) -> bool:
        return all(agree(a, b) is not False for a in members for b in others)

    candidates = [
        {i, *(j for j, others in enumerate(classes) if j != i and may_agree(members, others))}
        for i, members in enumerate(classes)
    ]
    merged: list[list[Measurement]] = []
    done: set[int] = set()
    for i, candidate in enumerate(candidates):
        if i not in done:
            group = candidate if all(candidates[j] == candidate for j in candidate) else {i}
            merged.append([member for j in sorted(group) for member in classes[j]])
            done |= group
    return merged


def describe_differences(found: Sequence[Measurement]) -> str:
    """Return the differences among measurements: `the tokenizer differs (char 65, gpt2 50257)`."""
    return " and ".join(
        f"the {name} differs ({', '.join(dict.fromkeys(values))})"
        for name, values in aspects(found).items()
        if len(set(values)) > 1
    )


def describe_group(members: Sequence[int], found: Sequence[Measurement]) -> str:
    """Return the difference between some measurements and the others: `precision bf16`."""
    words: list[str] = []
    for name, values in aspects(found).items():
        mine = dict.fromkeys(values[i] for i in members)
        if len(set(values)) > len(mine):
            words.append(f"{name} {', '.join(mine)}")
    return ", ".join(words)


def aspects(found: Sequence[Measurement]) -> dict[str, list[str]]:
    """Return a text for every aspect of every measurement; different values have different texts."""

    def texts(values: Sequence[str], agree: Agree) -> list[str]:
        return make_distinct(values, partition(found, agree))

    precisions = [m.precision or NOT_RECORDED for m in found]
    fp8 = [NOT_RECORDED if m.fp8 is None else str(m.fp8).lower() for m in found]
    return {
        "validation text": texts([m.source_name for m in found], agree_in_text),
        "tokenizer": texts([m.tokenizer_label for m in found], agree_in_tokenizer),
        "length of the evaluated windows": [f"model.block_size={m.block_size}" for m in found],
        "number of evaluated tokens": [f"eval.tokens={m.eval_tokens or 'null'}" for m in found],
        "precision": texts(precisions, lambda a, b: equal(a.precision, b.precision)),
        "use of fp8": texts(fp8, lambda a, b: equal(a.fp8, b.fp8)),
    }


def make_distinct(words: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Return the first recorded word of each label, numbered if two labels have the same word."""
    chosen: dict[int, str] = {}
    for word, label in zip(words, labels, strict=True):
        if chosen.get(label, NOT_RECORDED) == NOT_RECORDED:
            chosen[label] = word
    counts: dict[str, int] = {}
    for label, word in chosen.items():
        counts[word] = counts.get(word, 0) + 1
        chosen[label] = word if counts[word] == 1 else f"{word} ({counts[word]})"
    return [chosen[label] for label in labels]


def approximation_note(found: Sequence[Measurement]) -> str:
    """Return why results in bits per byte are only approximately on the same text, or ""."""
    notes: list[str] = []
    if any((m.coverage or 0.0) < WHOLE if m.coverage is not None else m.eval_tokens for m in found):
        notes.append("Each run evaluates a sample of the same text (eval.tokens): bits per byte also differ by chance.")
    if len({m.block_size for m in found}) > 1:
        notes.append("A longer model.block_size sees more text before each token.")
    if any(m.text is None for m in found):
        notes.append("The evaluated text is not recorded; the runs have the same data source.")
    return " ".join(notes)


def best_step(states: Mapping[int, Mapping[str, Any]]) -> int | None:
    """Return the step with the lowest validation loss, None without one; `states` are state.json by checkpoint step.

    Losses that are not comparable with the newest, because data, windows or precision have changed, don't count.
    """
    losses = {
        step: loss
        for step, state in states.items()
        if isinstance(loss := state.get("val_loss"), float) and math.isfinite(loss)
    }
    facts = {step: Measurement(**read_recorded(states[step])) for step in losses}
    losses = {step: loss for step, loss in losses.items() if agree_in_nats(facts[step], facts[max(facts)]) is not False}
    return min(losses, key=lambda step: (losses[step], step), default=None)
