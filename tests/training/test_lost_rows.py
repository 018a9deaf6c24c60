"""Rows of metrics.jsonl that were lost, doubled, garbled or edited while a run was paused: repaired or reported."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.config import TrainConfig
from nanogpt.metrics_check import RowsRecord
from nanogpt.metrics_file import RowLog
from nanogpt.training.run import train
from tests.tiny_config import tiny_config, write_corpus

Lines = list[bytes]


def rows_to(folder: Path, step: int) -> RowLog:
    """Rows as a training writes them, two per step from step 5 on."""
    log = RowLog(folder / "metrics.jsonl")
    log.rewind(-1)
    for number in range(1, step + 1):
        log.append({"step": number, "tokens": number * 128, "loss": 3 / number, "lr": 0.1})
        if number % 5 == 0:
            log.append({"step": number, "tokens": number * 128, "val_loss": 4 / number})
    return log


REPAIRED: dict[str, Callable[[Lines], Lines]] = {
    "one line doubled": lambda lines: [lines[0], *lines],
    "all doubled": lambda lines: lines + lines,
    "noise between": lambda lines: [*lines[:2], b"\0\0\xff\n", *lines[2:]],
    "a row of another step": lambda lines: [b'{"step": 1, "tokens": 128, "loss": NaN}\n', *lines],
    "out of order": lambda lines: lines[::-1],
    "doubled, out of order, with noise": lambda lines: [b"x\n", *lines[3:], *lines],
}
UNTOUCHED: dict[str, Callable[[Lines], Lines]] = {
    "as it was": lambda lines: lines,
    "later rows": lambda lines: [*lines, b'{"step": 12, "tokens": 1536, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0}\n'],
    "a torn row after it": lambda lines: [*lines, b'{"step": 12, "tok'],
    "its last newline gone": lambda lines: [*lines[:-1], lines[-1][:-1]],
}
DAMAGED: dict[str, Callable[[Lines], Lines]] = {
    "emptied": lambda _: [],
    "cut": lambda lines: lines[:2],
    "cut within a row": lambda lines: [*lines[:-1], lines[-1][:9]],
    "one row gone": lambda lines: lines[:1] + lines[2:],
    "one row garbled": lambda lines: [*lines[:1], b"\0" * len(lines[1]) + b"\n", *lines[2:]],
    "a loss edited": lambda lines: [lines[0].replace(b"3.0", b"2.5"), *lines[1:]],
}


@pytest.mark.parametrize("how", [*REPAIRED, *UNTOUCHED])
def test_rows_that_are_all_there_are_kept_exactly(how: str, tmp_path: Path) -> None:
    log = rows_to(tmp_path, 10)
    whole, record = log.path.read_bytes(), RowsRecord(**log.record())
    log.path.write_bytes(b"".join((REPAIRED | UNTOUCHED)[how](whole.splitlines(keepends=True))))
    found = log.rewind(10, 10, record)
    assert log.path.read_bytes() == whole and log.record() == record.model_dump()
    assert ("repaired exactly" in found.problem) == found.repaired == (how in REPAIRED)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("how", [*DAMAGED, "deleted"])
def test_rows_that_are_lost_are_reported(how: str, tmp_path: Path) -> None:
    log = rows_to(tmp_path, 10)
    whole, record = log.path.read_bytes().splitlines(keepends=True), RowsRecord(**log.record())
    damaged = b"".join(DAMAGED.get(how, lambda _: [])(whole))
    log.path.write_bytes(damaged)
    if how == "deleted":
        log.path.unlink()
    found = log.rewind(10, 10, record)
    assert "of the 12 rows that the checkpoint counted" in found.problem and not found.repaired
    left = log.path.read_bytes() if log.path.exists() else b""
    assert all(b"loss" in line for line in left.splitlines()), "what is sound is kept"
    if left != damaged:
        assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damaged, "nothing is thrown away"
    assert log.rewind(10, 10, RowsRecord(**log.record())).problem == "", "it is said once"


def test_runs_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Case 22: a run whose rows were doubled ends with the undisturbed run's bytes; lost ones are said and noted."""
    write_corpus(tmp_path / "corpus.txt")
    build: Callable[..., TrainConfig] = lambda **more: tiny_config(tmp_path, tmp_path / "corpus.txt", **more)  # noqa: E731
    assert train(build(stop_at_fraction=0.5)) == 0
    (path,) = tmp_path.glob("runs/*/metrics.jsonl")
    half = path.read_bytes()
    assert json.loads(newest_state(path))["metrics"] == {"count": 8, "sha256": hashlib.sha256(half).hexdigest()}
    path.write_bytes(half + half)
    capsys.readouterr()
    assert train(build(stop_at_fraction=0.75)) == 0
    assert capsys.readouterr().out.count("the rows are repaired exactly") == 1
    assert path.read_bytes()[: len(half)] == half
    path.write_bytes(b"")
    assert train(build()) == 0
    assert capsys.readouterr().out.count("of the 11 rows that the checkpoint counted are missing") == 1
    starts = json.loads((path.parent / "provenance.json").read_bytes())
    assert [len(start.get("notes", [])) for start in starts] == [0, 1, 1]
    assert train(build()) == 0 and "warning" not in capsys.readouterr().out


def newest_state(path: Path) -> bytes:
    return max(path.parent.glob("checkpoints/step-*/state.json")).read_bytes()


def test_a_checkpoint_without_a_record_is_continued(tmp_path: Path) -> None:
    """Checkpoints of earlier versions; only lines that can't be read are reported."""
    log = RowLog(tmp_path / "rows.jsonl")
    log.path.write_bytes(b'{"step": 1}\nnoise\n{"step": 3}\n{"ste')
    found = log.rewind(2)
    assert (
        log.path.read_bytes() == b'{"step": 1}\n' and found.problem == "lines that can't be read: 1; they were left out"
    )
    assert log.record()["count"] == 1
    assert log.rewind(2, 2, RowsRecord(**log.record())).problem == ""


def test_the_record_is_kept_along(tmp_path: Path) -> None:
    """A checkpoint of a long run must not read all rows again: nothing is opened."""
    log = RowLog(tmp_path / "rows.jsonl")
    for step in range(5):
        log.append({"step": step})
    record = log.record()
    log.path.unlink()
    assert log.record() == record and record["count"] == 5
