"""YAML that somebody sends as an experiment: tags and `_target_` make nothing, and a bomb is refused unread."""

import time
from pathlib import Path

import pytest

from tests.security.hostile import Person

HEAD = "# @package _global_\n"
TAGS = ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system", "!x"]
TARGETS = [
    "{place}: {{_target_: os.system, command: 'touch {canary}'}}",
    "{place}: [{{_target_: os.system, command: 'touch {canary}'}}]",
    "{place}: '${{oc.create:{{_target_: os.system, command: touch}}}}'",
]
PLACES = ("model", "name", "_target_", "sweep")
LOOKS = (["-m", "dry_run=true", "training.seed=1,2"], ["--cfg", "hydra"], ["--info"])
HYDRA = [
    "hydra: {{callbacks: {{x: {{_target_: os.system, command: 'touch {canary}'}}}}}}",
    "hydra: {{launcher: {{_target_: os.system, command: 'touch {canary}'}}}}",
    "hydra: {{sweeper: {{_target_: os.system, command: 'touch {canary}'}}}}",
    "hydra: {{searchpath: ['file:///etc']}}",
    "hydra: {{job_logging: {{formatters: {{x: {{(): os.system, command: 'touch {canary}'}}}}}}}}",
]
BOMB = "a: &a [x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize("tag", TAGS)
def test_tags(tag: str, person: Person, experiment: Path) -> None:
    experiment.write_text(f"{HEAD}name: {tag} ['touch {person.canary}']\n")
    assert person.refused("train.py", "experiment=mine", "dry_run=true") == 2


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_targets(person: Person, experiment: Path, every: bool) -> None:
    """Neither as a config, nor as a sweep, nor where Hydra itself shows what it makes of it."""
    for number, line in enumerate(TARGETS):
        for place in PLACES if every else (PLACES[number], PLACES[3]):
            experiment.write_text(HEAD + line.format(place=place, canary=person.canary) + "\n")
            assert person.refused("train.py", "experiment=mine", "dry_run=true") == 2
    for number, line in enumerate(HYDRA):
        experiment.write_text(HEAD + line.format(canary=person.canary) + "\n")
        for words in LOOKS if every else [LOOKS[number % 3]]:
            person.give("train.py", "experiment=mine", *words)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "name: " + "[" * 5000,
        "name: x" + " " * 10**6,
        "- a\n",
        "x",
        "\0",
        "name: 'a",
        "name: a\nname: b\n",
        "a: *a",
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_files_that_are_no_config(text: str, person: Person, experiment: Path) -> None:
    experiment.write_text(HEAD + text)
    started = time.process_time()
    assert person.refused("train.py", "experiment=mine", "dry_run=true") == 2
    assert time.process_time() - started < 30


def test_targets_on_a_command_line(person: Person) -> None:
    evil = "{_target_:os.system,command:ls}"
    for word in (
        "_target_=os.system",
        "model._target_=os.system",
        "optimizer={_target_:os.system}",
        f"data.source={evil}",
        f"sweep.points=[{evil}]",
        "sweep.grid={_target_:[os.system]}",
        "hydra.launcher._target_=os.system",
        "hydra/launcher={_target_:os.system}",
        "hydra.launcher.additional_parameters={_target_:{_target_:os.system}}",
        f"hydra.launcher.setup=[{evil}]",
        "hydra.sweeper._target_=os.system",
        "hydra.callbacks.x._target_=os.system",
        "+hydra.callbacks.x={_target_:os.system}",
        "hydra.searchpath=[file:///etc]",
    ):
        assert person.refused("train.py", "-m", "dry_run=true", "hydra/launcher=submitit_slurm", word) == 2
