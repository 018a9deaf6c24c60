"""Few whole trainings in which each choice of one option occurs beside each choice of every other."""

from collections.abc import Iterator, Mapping
from itertools import combinations, product

from nanogpt.config import OPTIMIZERS

Choices = Mapping[str, str]
OPTIONS: dict[str, dict[str, dict[str, str]]] = {
    "mode": {
        "eager": {"hardware.compile": "false"},
        "compiled": {"hardware.compile": "true"},
        "graphs": {"hardware.compile": "true", "hardware.compile_mode": "reduce-overhead"},
    },
    "ranks": {"1": {}, "2": {"hardware.devices": "2"}},
    "optimizer": {"adamw": {"optimizer": "adamw"}, "muon": {"optimizer": "muon"}},
    "strategy": {"ddp": {}, "fsdp": {"hardware.strategy": "fsdp"}},
    "dropout": {"0": {"model.dropout": "0"}, "0.1": {"model.dropout": "0.1"}},
    "precision": {
        "bf16": {"hardware.precision": "bf16"},
        "fp16": {"hardware.precision": "fp16"},
        "fp8": {"hardware.precision": "bf16", "hardware.fp8": "true"},
    },
}
SHORT = (  # what .ci/run tries: each choice but fp8 once, in four trainings
    {"mode": "eager", "ranks": "1", "optimizer": "adamw", "strategy": "ddp", "dropout": "0.1", "precision": "fp16"},
    {"mode": "eager", "ranks": "2", "optimizer": "adamw", "strategy": "fsdp", "dropout": "0", "precision": "bf16"},
    {"mode": "compiled", "ranks": "2", "optimizer": "muon", "strategy": "ddp", "dropout": "0.1", "precision": "bf16"},
    {"mode": "graphs", "ranks": "1", "optimizer": "adamw", "strategy": "ddp", "dropout": "0.1", "precision": "bf16"},
)


def is_allowed(choices: Choices) -> bool:
    """Return whether the config allows them.

    fsdp needs two ranks, bf16, an optimizer of shards and no CUDA graphs; fp8 needs a compiler.
    """
    if choices["strategy"] == "fsdp" and (choices["ranks"] == "1" or choices["mode"] == "graphs"):
        return False
    shardable = {str(name): spec.shardable for name, spec in OPTIMIZERS.items()}[choices["optimizer"]]
    if choices["strategy"] == "fsdp" and not (shardable and choices["precision"] == "bf16"):
        return False
    return choices["precision"] != "fp8" or choices["mode"] != "eager"


def pairs_of(choices: Choices) -> set[tuple[tuple[str, str], ...]]:
    return set(combinations(sorted(choices.items()), 2))


def cover_pairs() -> list[Choices]:
    """Return allowed trainings in which every allowed pair occurs, the training with most new pairs first."""
    every = [choices for choices in all_choices() if is_allowed(choices)]
    missing = set[tuple[tuple[str, str], ...]]().union(*map(pairs_of, every))
    chosen: list[Choices] = []
    while missing:
        best = max(every, key=lambda choices: len(pairs_of(choices) & missing))
        missing -= pairs_of(best)
        chosen.append(best)
    return chosen


def all_choices() -> Iterator[Choices]:
    for values in product(*OPTIONS.values()):
        yield dict(zip(OPTIONS, values, strict=True))


def overrides(choices: Choices) -> list[str]:
    """Return the words of a command line."""
    found: dict[str, str] = {}
    for option, choice in choices.items():
        found |= OPTIONS[option][choice]
    return [f"{key}={value}" for key, value in found.items()]


def name_of(choices: Choices) -> str:
    return "-".join(choices.values())
