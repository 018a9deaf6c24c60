"""Names of checkpoints, samples, attempts, submissions: only what this program writes; strays are named and ignored."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.gc import delete_path
from launch.study import RECORDS
from launch.submission import find_stray_entries, read_submissions
from nanogpt.checkpoint import Checkpoints
from nanogpt.entry_names import choose_attempt, parse_number, parse_run_name, parse_sample_step, parse_step, step_name
from nanogpt.run_directory import newest_step
from nanogpt.training.run import train
from tests.tiny_config import tiny_config, write_corpus

STRAYS = [
    "step-99",
    "step-\N{SUPERSCRIPT TWO}",
    "step-00000004.bak",
    "step-0000000\N{ARABIC-INDIC DIGIT THREE}",
    "step-000000012",
    "step--0000001",
    "step-00000004 ",
    "step-00000004\n",
    "Step-00000004",
    "step-+0000004",
    "step-0000_004",
]


@pytest.mark.parametrize("name", STRAYS)
def test_a_stray_is_no_checkpoint(name: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert parse_step(name) is None and parse_sample_step(f"{name}.txt") is None
    assert checkpoints.steps() == [] and newest_step(tmp_path) == 0 and checkpoints.list_foreign_entries() == [name]
    checkpoints.clean()
    assert (tmp_path / "checkpoints" / name).is_dir(), "nothing that is not ours is removed"


@pytest.mark.parametrize("step", [0, 1, 99_999_999, 100_000_000, 123_456_789_012])
def test_every_step_is_read_back(step: int) -> None:
    assert parse_step(step_name(step)) == step and parse_sample_step(f"{step_name(step)}.txt") == step


@pytest.mark.parametrize(
    "end", ["-02", "-1", "-0", "-\N{SUPERSCRIPT TWO}", "-\N{ARABIC-INDIC DIGIT THREE}", "-2\n", "-2-2"]
)
def test_a_stray_is_no_attempt(end: str) -> None:
    assert choose_attempt("run-0123abcd", ["run-0123abcd", f"run-0123abcd{end}"], new_attempt=True) == "run-0123abcd-2"
    assert parse_run_name(f"run-0123abcd{end}") is None


def test_attempts_are_counted() -> None:
    assert choose_attempt("a", ["a", "a-2", "a-10"], new_attempt=True) == "a-11" and parse_run_name(
        "a-0123abcd-10"
    ) == (
        "a",
        "0123abcd",
        10,
    )


def test_a_stray_is_no_submission(tmp_path: Path) -> None:
    strays = ["01", "1.bak", "1\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT THREE}"]
    for name in [*strays, "2", "10", "code"]:
        (tmp_path / RECORDS / name).mkdir(parents=True)
        (tmp_path / RECORDS / name / "submission.json").write_text("{}")
    assert [one.number for one in read_submissions(tmp_path)] == [2, 10]
    assert find_stray_entries(tmp_path) == sorted(strays)
    assert [parse_number(name) for name in strays] == [None] * len(strays)


def test_a_run_goes_on_beside_strays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One warning names them (case 24); they stay where they are."""
    write_corpus(tmp_path / "corpus.txt")
    build: Callable[..., Any] = lambda **more: tiny_config(tmp_path, tmp_path / "corpus.txt", **more)  # noqa: E731
    assert train(build(**{"training.steps": 4, "stop_at_fraction": 0.5})) == 0
    (run,) = (tmp_path / "runs").iterdir()
    for name in ("step-99", "step-\N{SUPERSCRIPT TWO}", "step-00000004.bak"):
        (run / "checkpoints" / name).mkdir()
    capsys.readouterr()
    assert train(build(**{"training.steps": 4})) == 0
    said = capsys.readouterr()
    assert (said.out + said.err).count(
        "not checkpoints of this program, ignored: step-00000004.bak, step-99, step-"
    ) == 1
    assert (run / "checkpoints" / "step-99").is_dir() and newest_step(run) == 4


def test_a_deletion_that_was_cut_short_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gc renames a folder before it deletes it."""
    folder = tmp_path / "code"
    folder.mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        delete_path(folder)
    assert [path.name for path in tmp_path.iterdir()] == [".del-code"]
    delete_path(tmp_path / ".del-code")
    assert list(tmp_path.iterdir()) == []


def killed(path: Path, ignore_errors: bool = False) -> None:
    if not ignore_errors:
        raise KeyboardInterrupt
