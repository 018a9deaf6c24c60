"""The records of a study that somebody sent or changed, given to every command about studies."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.security.hostile import JSON, Person

STATUS, CANCEL, RETRY = (("-m", "launch", word, "study") for word in ("status", "cancel", "retry"))
WAIT, LIST = ("-m", "launch", "wait", "study", "poll_s=0.2"), ("-m", "experiments", "list")
LOGS, GC = ("-m", "launch", "logs", "study"), ("-m", "experiments", "gc", "delete=true")
ABOUT = [
    {"launcher": {}},
    {"launcher": {"_target_": "os.system"}},
    {"resources": {}},
    {"executor": "pickle"},
    {"logs": "/dev/zero"},
    {"logs": "a\0b"},
    {"code": "../../../x"},
    {"time": "x"},
    {"jobs": [{"id": "1; touch canary", "name": "x\n", "first": 0, "count": 2}]},
    {"jobs": [{"id": "123", "name": "x", "first": -5, "count": 10**12}]},
]
POINTS = [
    {"run": 5, "config": {}},
    {"run": "a\0b", "config": {}},
    {"run": "/dev/zero", "config": {}},
    {"run": "x" * 10_000, "config": {"_target_": "os.system"}},
    {"run": "/", "config": 5},
    {"run": "/"},
]
EVENTS = [
    {"event": "start", "job": "1; touch canary", "step": "x", "time": "x"},
    {"event": "start", "job": ["../../x"], "step": 0, "time": 0},
    {"event": "start", "job": "a\0b", "step": 0, "time": 0},
    {"event": "end", "state": "failed", "why": "\x1b[2J\n", "time": 0, "code": "x"},
    {"event": "end", "state": ["failed"], "why": {}, "time": 0},
    {"event": ["start"]},
]


@pytest.fixture
def study(person: Person, slurm: Path, words: list[str]) -> Path:
    """One that was submitted and has not begun."""
    mine = ["hydra/launcher=submitit_slurm", "hydra.launcher.wait=false", "name=study", "training.seed=1,2"]
    assert person.give("train.py", "-m", *words, *mine).code == 0
    return Path("runs/study")


def every_command(person: Person, file: Path, bombs: list[bytes], lies: list[bytes]) -> None:
    """Each is done, or refuses in one line; what it says holds no control characters but line breaks."""
    good = file.read_bytes() if file.exists() else None
    for content in (*bombs, *lies):
        for words in (STATUS, CANCEL, RETRY, LOGS, GC) if content in bombs[:1] else (STATUS, LIST):
            file.write_bytes(content)
            done = person.give(*words)
            assert (done.out + done.err).replace("\n", "").isprintable(), (content[:100], words, done)
            assert done.err.count("\n") <= 1, (content[:100], words, done.err)
    file.unlink()
    if good is not None:
        file.write_bytes(good)


def test_what_was_submitted(person: Person, study: Path) -> None:
    file = study / ".launch" / "1" / "submission.json"
    facts: dict[str, Any] = json.loads(file.read_bytes())
    bombs = [person.pickle, JSON["deep"], JSON["list"], JSON["kinds"]]
    every_command(person, file, bombs, [json.dumps(facts | one).encode() for one in ABOUT])


def test_its_points(person: Person, study: Path) -> None:
    bombs = [person.pickle, JSON["deep"], JSON["list"], b"[]\n[]\n"]
    file = study / ".launch" / "1" / "points.jsonl"
    every_command(person, file, bombs, [json.dumps(one).encode() for one in POINTS])


def test_what_became_of_them(person: Person, study: Path) -> None:
    (study / ".launch" / "1" / "events").mkdir(exist_ok=True)
    bombs = [person.pickle, JSON["deep"], JSON["list"]]
    lines = [json.dumps(one).encode() + b"\n" for one in EVENTS]
    every_command(person, study / ".launch" / "1" / "events" / "0.jsonl", bombs, lines)
    assert person.give(*WAIT).code == 1


def test_submitit_s_pickles_are_left_alone(person: Person, study: Path) -> None:
    for name in ("123_0_submitted.pkl", "123_0_0_result.pkl", "123_1_submitted.pkl", "123_1_0_result.pkl"):
        (study / "logs" / name).write_bytes(person.pickle)
    for words in (STATUS, LOGS, CANCEL, RETRY, LIST, GC):
        person.give(*words)


def test_records_that_others_can_write_to(person: Person, study: Path, words: list[str]) -> None:
    """What is in there will be run."""
    mine = ["hydra/launcher=submitit_slurm", "hydra.launcher.wait=false", "name=study", "training.seed=1,2,3"]
    (study / ".launch").chmod(0o777)
    for command in (("train.py", "-m", *words, *mine), CANCEL, RETRY):
        assert person.refused(*command) == 5
    (study / ".launch").chmod(0o700)
    os.rename(study / ".launch", "elsewhere")
    (study / ".launch").symlink_to(Path("elsewhere").resolve())
    assert person.refused("train.py", "-m", *words, *mine) == 5


def test_a_record_of_trials(person: Person, words: list[str]) -> None:
    pytest.importorskip("optuna")
    folder = Path("runs/search")
    folder.mkdir()
    rest = [word for word in words if not word.startswith("optimizer.lr=")]
    mine = ["hydra/sweeper=optuna", "hydra.sweeper.trials=1", "name=search", "optimizer.lr=interval(0.001,0.1)"]
    evil = [
        b'{"values":{"optimizer.lr":"${oc.env:WANDB_API_KEY}"},"runs":[]}',
        b'{"values":{"name":"../x"},"runs":[["x"]]}',
    ]
    for content in (person.pickle, JSON["deep"], JSON["list"], *evil):
        (folder / "trials.jsonl").write_bytes(content + b"\n")
        done = person.give("train.py", "-m", *rest, *mine, "dry_run=true")
        assert done.code in (0, 2, 4) and done.err.count("\n") <= 1, done
