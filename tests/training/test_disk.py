"""Disks that are full, files that log rotation takes away, and checkpoints that are kept."""

import os
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanogpt.config import TrainConfig
from nanogpt.errors import BadEnvironment
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.training import loop
from nanogpt.training.run import train
from tests import ranks
from tests.ranks import Fault

Build = Callable[..., TrainConfig]
Reference = Callable[..., dict[str, str]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path, None, None]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    """Take every byte of the file system."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def at_step(step: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something before the step from `step` to the next."""
    real = loop.train_step

    def acting(state, *rest):  # type: ignore[no-untyped-def]
        if state.step == step:
            action()
        return real(state, *rest)

    monkeypatch.setattr(loop, "train_step", acting)


def test_f14_a_disk_that_is_full_for_a_while(
    config: Build,
    undisturbed: Reference,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Full from step 6 to step 14: no row is lost, the checkpoints before stay, and the run ends as if nothing was."""
    built = config(runs_dir=str(small_disk / "runs"), **{"checkpoint.max_failed": 9})
    at_step(6, lambda: fill(small_disk), monkeypatch)
    kept: list[bool] = []

    def look() -> None:
        kept.append(RunDirectory(locate_run(built)).checkpoints.load_newest()[0] is not None)
        (small_disk / "filler").unlink()

    at_step(14, look, monkeypatch)
    assert train(built) == 0
    shown = capsys.readouterr().out
    assert kept == [True]
    assert "No space left on device" in shown and "1 of 9 failures in a row; training goes on" in shown
    assert "rows are kept in memory" in shown
    found, expected = ranks.result(built), undisturbed()
    lost = {name for name in expected if name.startswith("samples/")}  # written while there was no space
    assert {name: found.get(name) for name in expected.keys() - lost} == {
        name: expected[name] for name in expected.keys() - lost
    }


def test_f14_a_disk_that_stays_full(
    config: Build, undisturbed: Reference, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After three failures the run ends with exit code 5; with space again the same command finishes exactly."""
    built = config(runs_dir=str(small_disk / "runs"), **{"checkpoint.every": 2})

    def fill_once_saved() -> None:
        while not (locate_run(built) / "checkpoints/step-00000006").exists():  # a thread writes it
            time.sleep(0.01)
        fill(small_disk)

    with pytest.MonkeyPatch.context() as patch:
        at_step(7, fill_once_saved, patch)
        with pytest.raises(BadEnvironment, match="3 checkpoints in a row couldn't be written"):
            train(built)
    loaded, damaged = RunDirectory(locate_run(built)).checkpoints.load_newest()
    assert loaded is not None and not damaged and loaded.state["step"] == 6
    (small_disk / "filler").unlink()
    assert train(built) == 0
    assert ranks.result(built) == undisturbed(**{"checkpoint.every": 2})


def test_f14_space_is_looked_at_before_writing(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has both numbers."""
    import shutil

    from nanogpt import checkpoint

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="No space left on device, 12,000 bytes needed, 1,000 free"):
        checkpoint.check_disk_space(Path(locate_run(config()).parent), 10_000)


@pytest.mark.parametrize("how", ["rename", "unlink", "truncate"])
def test_f40_log_rotation(config: Build, undisturbed: Reference, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """metrics.jsonl is taken away in the middle: the rows after it are in a new file, none is lost or doubled."""
    built = config()
    metrics = locate_run(built) / "metrics.jsonl"
    before: list[str] = []

    def rotate() -> None:
        before.append(metrics.read_text())
        if how == "rename":
            metrics.rename(metrics.with_suffix(".jsonl.1"))
        elif how == "unlink":
            metrics.unlink()
        else:
            os.truncate(metrics, 0)

    at_step(9, rotate, monkeypatch)
    assert train(built) == 0
    metrics.write_text(before[0] + metrics.read_text())
    assert ranks.result(built) == undisturbed()


def test_checkpoints_kept_for_good(config: Build) -> None:
    built = config(**{"checkpoint.every": 1, "checkpoint.keep_every": 6, "checkpoint.keep": 3})
    assert ranks.run(built)[0] == [0]
    checkpoints = RunDirectory(locate_run(built)).checkpoints
    assert set(checkpoints.steps()) == {6, 12, 18, 19, 20, checkpoints.best_step()}


def test_a_row_that_was_torn_by_a_full_disk_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanogpt.metrics_file import RowLog, read_rows

    log = RowLog(tmp_path / "metrics.jsonl")
    assert log.append({"step": 1})
    real = os.write

    def short(descriptor: int, data: bytes) -> int:
        if len(data) < 8:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:5])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        assert not log.append({"step": 2})
    assert len(read_rows(log.path)) == 1
    with pytest.raises(OSError, match="No space"), monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        log.sync()
    assert log.append({"step": 3})
    assert [row["step"] for row in read_rows(log.path)] == [1, 2, 3]


def test_a_fault_while_pruning_costs_nothing(config: Build, undisturbed: Reference) -> None:
    codes, _ = ranks.run(config(), 1, [Fault("nanogpt.checkpoint.shutil.rmtree", 7, "oserror")])
    assert codes[0] in (0, 5)
    assert ranks.run(config())[0] == [0]
    assert ranks.result(config()) == undisturbed()
