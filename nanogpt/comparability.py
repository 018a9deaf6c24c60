"""Whether the results of a set of runs can be compared, and in which unit: the one home of that question.

Losses in nats per token are comparable where tokenizer, evaluated windows, precision and fp8 are the same. Bits per
byte are also comparable where the tokenizer or the windows differ, as long as the validation text is the same. All
else is not comparable: another text has another entropy, and another precision gives other numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nanogpt.config import Metric
from nanogpt.measurement import Measurement, read_facts

Unit = Literal["nats", "bits_per_byte"]
Same = bool | None
"""Whether two measurements agree; None: not recorded."""
Agree = Callable[[Measurement, Measurement], Same]
IN_BITS: dict[Metric, Metric] = {
    "val_loss": "val_bpb",
    "best_val_loss": "best_val_bpb",
    "val_bpb": "val_bpb",
    "best_val_bpb": "best_val_bpb",
}
WHOLE = 0.99  # windows that predict this share of the text count as all of it: the last one is rarely full
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Comparability:
    """The unit a set of results is comparable in, and why not in another."""

    unit: Unit | None
    """None: not comparable."""
    reason: str
    """What differs, in words; empty where nothing does."""
    note: str = ""
    """What to keep in mind where the comparison is approximate."""


@dataclass(frozen=True)
class Group:
    """Results that are ranked together."""

    members: tuple[int, ...]
    """Their places in the list that was grouped."""
    metric: Metric
    title: str
    """What sets them apart from the other groups; empty for the only one."""
    in_nats: bool
    """Whether losses in nats per token are comparable among them."""


@dataclass(frozen=True)
class Grouping:
    """Comparable groups of results."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    """What was not comparable, or only in bits per byte, to be said above the ranking."""


def compare_measurements(found: Sequence[Measurement]) -> Comparability:
    """Return the unit in which all results are comparable, or none, with the reason."""
    reason = describe_differences(found)
    if len(set(partition(found, agree_in_nats))) <= 1:
        return Comparability("nats", "")
    if len(set(partition(found, agree_in_bits))) <= 1:
        return Comparability("bits_per_byte", reason, approximation_note(found))
    return Comparability(None, reason)


def group_results(found: Sequence[Measurement], metric: Metric) -> Grouping:
    """Return the groups in which results are ranked, each by `metric` or by its counterpart in bits per byte."""
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
    """Whether two losses in nats per token are comparable."""
    return all_of(agree_in_arithmetic(a, b), agree_in_tokenizer(a, b), agree_in_windows(a, b))


def agree_in_bits(a: Measurement, b: Measurement) -> Same:
    """Whether two results in bits per byte are comparable."""
    return all_of(agree_in_arithmetic(a, b), agree_in_text(a, b))


def agree_in_arithmetic(a: Measurement, b: Measurement) -> Same:
    """Whether precision and fp8 are the same."""
    return all_of(equal(a.precision, b.precision), equal(a.fp8, b.fp8))


def agree_in_tokenizer(a: Measurement, b: Measurement) -> Same:
    """Whether the tokenizers are the same."""
    if (known := equal(a.tokenizer, b.tokenizer)) is not None:
        return known
    same = (a.tokenizer_name, a.asked_vocab_size) == (b.tokenizer_name, b.asked_vocab_size)
    return None if same else False


def agree_in_windows(a: Measurement, b: Measurement) -> Same:
    """Whether the same windows were evaluated."""
    if (known := equal(a.windows, b.windows)) is not None:
        return known
    if (a.block_size, a.eval_tokens) != (b.block_size, b.eval_tokens):
        return False
    if (known := equal(a.data, b.data)) is not None:
        return known
    return None if a.source == b.source else False


def agree_in_text(a: Measurement, b: Measurement) -> Same:
    """Whether the validation texts are the same."""
    if (known := equal(a.text, b.text)) is not None:
        return known
    if equal(a.data, b.data):
        return True
    if equal(a.data, b.data) is False and agree_in_tokenizer(a, b) is not False:
        return False  # the same tokenizer made other tokens
    return None if a.source == b.source else False


def equal(a: object, b: object) -> Same:
    """Whether two facts are equal; None where one of them was not recorded."""
    return None if a is None or b is None else a == b


def all_of(*facts: Same) -> Same:
    """Return False if any fact is False, else None if any is unknown, else True."""
    return False if False in facts else None if None in facts else True


def partition(found: Sequence[Measurement], agree: Agree) -> list[int]:
    """Return a label for every measurement; those with the same label agree.

    What was not recorded is taken to agree with measurements of the same request, unless these differ among
    themselves: then nothing says which of them it belongs to.
    """
    classes: list[list[Measurement]] = []
    for one in dict.fromkeys(found):
        same = [mine for mine in classes if any(agree(one, other) for other in mine)]
        classes = [mine for mine in classes if mine not in same] + [[*(m for mine in same for m in mine), one]]
    label_of = {one: label for label, mine in enumerate(merge_unrecorded(classes, agree)) for one in mine}
    return [label_of[one] for one in found]


def merge_unrecorded(classes: list[list[Measurement]], agree: Agree) -> list[list[Measurement]]:
    """Join classes that may agree, where there is only one way to do so."""

    def may_agree(mine: list[Measurement], others: list[Measurement]) -> bool:
        return all(agree(a, b) is not False for a in mine for b in others)

    candidates = [
        {i, *(j for j, others in enumerate(classes) if j != i and may_agree(mine, others))}
        for i, mine in enumerate(classes)
    ]
    joined: list[list[Measurement]] = []
    done: set[int] = set()
    for i, joint in enumerate(candidates):
        if i not in done:
            together = joint if all(candidates[j] == joint for j in joint) else {i}
            joined.append([one for j in sorted(together) for one in classes[j]])
            done |= together
    return joined


def describe_differences(found: Sequence[Measurement]) -> str:
    """Return what differs among measurements: `the tokenizer differs (char 65, gpt2 50257)`."""
    return " and ".join(
        f"the {name} differs ({', '.join(dict.fromkeys(values))})"
        for name, values in aspects(found).items()
        if len(set(values)) > 1
    )


def describe_group(members: Sequence[int], found: Sequence[Measurement]) -> str:
    """Return what sets some of the measurements apart: `precision bf16`."""
    words: list[str] = []
    for name, values in aspects(found).items():
        mine = dict.fromkeys(values[i] for i in members)
        if len(set(values)) > len(mine):
            words.append(f"{name} {', '.join(mine)}")
    return ", ".join(words)


def aspects(found: Sequence[Measurement]) -> dict[str, list[str]]:
    """Return the value of every aspect of every measurement in words; different values have different words."""

    def words(values: Sequence[str], agree: Agree) -> list[str]:
        return tell_apart(values, partition(found, agree))

    return {
        "validation text": words([one.source_name for one in found], agree_in_text),
        "tokenizer": words([one.tokenizer_label for one in found], agree_in_tokenizer),
        "length of the evaluated windows": [f"model.block_size={one.block_size}" for one in found],
        "number of evaluated tokens": [f"eval.tokens={one.eval_tokens or 'null'}" for one in found],
        "precision": words(
            [one.precision or NOT_RECORDED for one in found], lambda a, b: equal(a.precision, b.precision)
        ),
        "use of fp8": words(
            [NOT_RECORDED if one.fp8 is None else str(one.fp8).lower() for one in found],
            lambda a, b: equal(a.fp8, b.fp8),
        ),
    }


def tell_apart(words: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Return one text for each label: its first word that says something, numbered where two labels have the same."""
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
    """Return in which way results in bits per byte are only about the same text."""
    words: list[str] = []
    if any((one.coverage or 0.0) < WHOLE if one.coverage is not None else one.eval_tokens for one in found):
        words.append("Each run evaluates a sample of the same text (eval.tokens): bits per byte also differ by chance.")
    if len({one.block_size for one in found}) > 1:
        words.append("A longer model.block_size sees more text before each token.")
    if any(one.text is None for one in found):
        words.append("Which text was evaluated is not recorded; the runs have the same data source.")
    return " ".join(words)


def best_step(states: Mapping[int, Mapping[str, Any]]) -> int | None:
    """Return the step with the lowest validation loss, given the state.json of every checkpoint of a run by its step.

    Losses from before a change of the data, the windows or the precision are not comparable with the newest, so they
    do not count. None where no checkpoint was evaluated.
    """
    losses = {
        step: loss
        for step, state in states.items()
        if isinstance(loss := state.get("val_loss"), float) and math.isfinite(loss)
    }
    facts = {step: Measurement(**read_facts(states[step])) for step in losses}
    losses = {step: loss for step, loss in losses.items() if agree_in_nats(facts[step], facts[max(facts)]) is not False}
    return min(losses, key=lambda step: (losses[step], step), default=None)
