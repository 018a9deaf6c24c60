"""A run that a later start extended and finished: its first command says so. An attempt that can't be is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput
from nanogpt.run_directory import locate_run
from nanogpt.training.run import train

Build = Callable[..., TrainConfig]


def test_the_first_command_of_an_extended_run_says_that_it_is_finished(
    config: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"training.steps": 4, "eval.every": 4}
    assert train(config(**short)) == 0
    path = locate_run(config(**short))
    extend = {"resume.run": str(path), "resume.allow_change": ["training.steps"]}
    longer = config(**short | {"training.steps": 6} | extend)
    assert train(longer) == 0
    before = (path / "config.json").read_bytes(), (path / "provenance.json").read_bytes()
    capsys.readouterr()
    assert train(config(**short)) == 0
    said = capsys.readouterr().out
    assert "finished already, at step 6" in said and "start 2 (" in said and "training.steps: 4 -> 6" in said
    assert "continuing" not in said
    assert ((path / "config.json").read_bytes(), (path / "provenance.json").read_bytes()) == before
    assert train(longer) == 0
    said = capsys.readouterr().out
    assert "(finished at step 6)" in said and "finished already, at step 6" in said and "continuing" not in said


def test_an_attempt_follows_those_that_are_there(config: Build, tmp_path: Path) -> None:
    first = locate_run(config(attempt=1))
    for number in (2, 5):
        with pytest.raises(BadInput, match=f"attempt={number}: no such attempt .* there is none yet"):
            locate_run(config(attempt=number))
    first.mkdir(parents=True)
    assert locate_run(config(attempt=2)).name == f"{first.name}-2"
    with pytest.raises(BadInput, match=f"attempt=5: no such .*; the latest is {first.name}"):
        train(config(attempt=5))
    assert [one.name for one in first.parent.iterdir()] == [first.name]
