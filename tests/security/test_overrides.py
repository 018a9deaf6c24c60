"""Whatever is typed for any key, and whatever is typed at all: a valid config or one line, never anything else."""

import copy
import random
import time
from collections.abc import Generator
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir

from cli import config_files, sweep_request
from cli.argv import split_flags
from cli.compose import register_schemas
from cli.config_files import choices, groups
from cli.overrides import first_value, parse_override
from cli.sweep_keys import sweep_fields
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput, LabError
from nanogpt.schema import iter_fields
from tests.cached_compose import Remembering

KEYS = dict(iter_fields(TrainConfig))
SECONDS = 30.0  # of processor time: what hangs or grows with 2^n takes more, a slow machine does not


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    """Where nothing may be left behind."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def refusal(error: LabError, about: object) -> str:
    """Its line, which must be one."""
    line = str(error)
    assert isinstance(error, BadInput) and line.isprintable() and len(line) <= 2000, (about, error)
    return line


NUMBERS = ["-1", "0", "1.5", "-1e30", "1e30", "1e999", "nan", "inf", "-inf", "9" * 5000, "1" + "0" * 30, "0x7f", "1_0"]
TEXTS = [
    "''",
    "",
    "null",
    "true",
    "x",
    "x" * 10_000,
    "'\x1b[2J\n'",
    "'\ud800'",
    "'\0'",
    "\"'1'\"",
    "'a\\nb'",
    "'\u202e'",
]
NESTED = [
    "[]",
    "[[1]]",
    "{}",
    "{a:{b:1}}",
    "{_target_:os.system}",
    "[{_target_:os.system,command:ls}]",
    "[null]",
    "[nan]",
]


@pytest.mark.parametrize("value", [*NUMBERS, *TEXTS, *NESTED], ids=lambda value: ascii(value[:20]))
def test_a_value_for_every_key(value: str) -> None:
    """Wrong types, below and above, not finite, empty, long, nested: the config is valid or a line names the key."""
    for key in KEYS:
        plain = copy.deepcopy(usual())
        *path, name = key.split(".")
        try:
            reduce(lambda inner, part: inner[part], path, plain)[name] = read(key, value)
            composer().build_config(plain)
        except LabError as error:
            line = refusal(error, (key, value))
            assert name in line or f"{path[-1]}." in line, (key, value, line)


def read(key: str, value: str) -> Any:
    """What Hydra reads of a value; of a long one, which takes it a tenth of a second, once for all keys."""
    return read_once(value) if len(value) > 5000 else first_value(parse_override(f"{key}={value}"), False).value


@cache
def read_once(value: str) -> Any:
    """Unless it is refused, which is then said of each key."""
    return first_value(parse_override(f"name={value}"), False).value


@cache
def composer() -> Remembering:
    """Of no overrides."""
    with initialize_config_dir(str(config_files.CONFIG_DIR), version_base="1.3"):
        register_schemas("train", TrainConfig)
        made = Remembering("train", TrainConfig, {}, [])
        made.compose_files(())
    return made


@cache
def usual() -> dict[str, Any]:
    """What is composed without overrides."""
    return composer().compose_values([])


def test_values_on_a_command_line() -> None:
    """The same by the whole way, for a key of each kind."""
    kinds = {str(field.annotation): key for key, field in KEYS.items()}
    for value in ("nan", "'\x1b[2J'", "[{_target_:os.system,command:ls}]", "9" * 5000):
        for key in [*kinds.values()][::2]:
            answer([f"{key}={value}"])


def answer(words: list[str]) -> str | None:
    """The line that refuses the words, or None where they make configs. Anything else fails, and so does waiting."""
    started = time.process_time()
    try:
        flags, overrides = split_flags(words)
        several = "-m" in flags
        if not several or sweep_request.count_points("train", TrainConfig, overrides) in (1, 2, 3):
            made = sweep_request.read_configs("train", TrainConfig, overrides, multirun=several)
            assert made and all(isinstance(one, TrainConfig) for one in made)
        line = None
    except LabError as error:
        line = refusal(error, words)
    took = time.process_time() - started
    assert took < SECONDS, f"{took:.1f} s for {words}"
    return line


GROUPS = {group: choices(group) for group in groups("train")} | {
    group: choices(group) for group in ("hydra/launcher", "hydra/sweeper")
}
MARKS = [*"~+@=[]{}()'\",:;\\$#%&*!|<>/ \t\n\r\0.-", "${", "}", "++", "${model.n_layer}", "${oc.env:HOME}", "${oc.env:"]
MARKS += [
    "${oc.decode:",
    "${oc.env:WANDB_API_KEY}",
    "${x}",
    "${.lr}",
    "${..}",
    "???",
    "_target_",
    "choice(",
    "range(1,3)",
]
MARKS += [
    "interval(0,1)",
    "glob(*)",
    "shuffle(",
    "sort(1,2)",
    "int(",
    "json_str({})",
    "extend_list(1)",
    "null",
    "1e999",
]
MARKS += ["\u202e", "\ud800", "\ufeff", "é", "名", "\x1b[2J", "../", "!!python/object/apply:os.system", "&a [*a,*a]"]


def override(draw: random.Random) -> str:
    """One that could be right."""
    if draw.random() < 0.2:
        group = draw.choice([*GROUPS])
        return f"{group}={draw.choice(GROUPS[group])}"
    key = draw.choice([*KEYS] if draw.random() < 0.8 else [*sweep_fields()])
    values = [
        "1",
        "2",
        "0.5",
        "1e-3",
        "true",
        "x",
        "null",
        "[a,b]",
        "'a b'",
        "{a:1}",
        "1,2",
        "range(1,3)",
        "${training.seed}",
    ]
    return f"{key}={draw.choice(values)}"


def mutated(text: str, draw: random.Random) -> str:
    """A little changed: something put in, taken out, doubled, swapped."""
    for _ in range(draw.choice([0, 1, 1, 2, 3, 8])):
        here, there = sorted((draw.randint(0, len(text)), draw.randint(0, len(text))))
        text = draw.choice(
            [
                text[:here] + draw.choice(MARKS) + text[here:],
                text[:here] + text[there:],
                text[:there] + text[here:there] + text[there:],
                text[here:] + text[:here],
                text[:here] + chr(draw.randrange(0x110000)) + text[there:],
            ]
        )
    return text


def typed(draw: random.Random) -> list[str]:
    """A command line."""
    if draw.random() < 0.1:
        words = ["".join(chr(draw.randrange(draw.choice([128, 0x110000]))) for _ in range(draw.randint(0, 30)))]
    else:
        words = [mutated(override(draw), draw) for _ in range(draw.choice([1, 1, 1, 2, 3]))]
    return [*(["-m"] if draw.random() < 0.2 else []), *words]


def try_many(count: int, seed: int) -> None:
    answers: list[str | None] = []
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        try:
            answers.append(answer(typed(draw)))
        except Exception as error:
            raise AssertionError(f"{seed} {number}: {typed(random.Random(f'{seed} {number}'))}") from error
    good = answers.count(None)
    assert 0.01 * count < good < 0.8 * count, "neither all is refused nor all is taken"


def test_some_command_lines() -> None:
    try_many(300, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_command_lines() -> None:
    try_many(10_000, seed=2)
