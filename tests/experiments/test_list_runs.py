"""`list`, `watch` and `gc`: what every run is doing, and what of it could be deleted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import gc
from experiments.gc import collect_garbage, find_extra_checkpoints
from experiments.list_runs import list_runs, watch
from launch import watching
from nanogpt.config import GcConfig, ListConfig, WatchConfig
from nanogpt.errors import BadInput
from nanogpt.files import hold_lock
from nanogpt.run_directory import RunDirectory
from tests.experiments.fake_runs import write_run


def checkpoint(run: Path, step: int, loss: float | None = None, name: str = "step") -> Path:
    """Write a folder that looks like a checkpoint."""
    path = run / "checkpoints" / f"{name}-{step:08d}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(1000))
    (path / "state.json").write_text("{}" if loss is None else f'{{"val_loss": {loss}}}')
    return path


@pytest.fixture
def runs(tmp_path: Path) -> str:
    """Write a study with a finished and a failed run, and a running run outside it."""
    write_run(tmp_path / "runs" / "study", [5.0, 2.0, 3.0], name="good")
    failed = {"state": "failed", "why": "BadData: no such file"}
    write_run(tmp_path / "runs" / "study", [5.0], name="bad", **failed, **{"training.steps": 40})  # type: ignore[arg-type]
    going = write_run(tmp_path / "runs", [5.0, 4.0], name="going", state="running", **{"training.steps": 50})
    os.utime(going / "status.json", (1, 1))
    return str(tmp_path / "runs")


def lines(text: str) -> dict[str, list[str]]:
    """Return the cells of a table by the run's name."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {row[0].rpartition("-")[0]: row for row in rows}


def test_every_run_in_a_line(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_runs(ListConfig(runs_dir=runs)) == 0
    told = capsys.readouterr().out
    found = lines(told)
    assert "3 runs: 1 failed, 1 finished, 1 running" in told and "failed: BadData: no such file" in told
    assert found["study/good"][1:6] == ["finished", "20/20", "100 %", "3.0000", "2.0000"]
    assert found["study/bad"][1:6] == ["failed", "0/40", "0 %", "5.0000", "5.0000"]
    assert found["going"][1:4] == ["running", "10/50", "20 %"] and found["going"][6:8] == ["1k", "5s"]


def test_only_one_state(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_runs(ListConfig(runs_dir=runs, state="failed")) == 0
    assert list(lines(capsys.readouterr().out)) == ["study/bad"]
    with pytest.raises(BadInput, match="state=lost: none of 3 runs; there are: failed, finished, running"):
        list_runs(ListConfig(runs_dir=runs, state="lost"))


def test_watching_ends_when_nothing_is_on_its_way(
    runs: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    going = next(Path(runs).glob("going-*"))
    looks: list[float] = []

    def pause(seconds: float) -> None:
        looks.append(seconds)
        with (going / "metrics.jsonl").open("a") as file:
            file.write(f'{{"step": {10 + 10 * len(looks)}, "tokens": 1, "val_loss": {4 - len(looks)}.0}}\n')
        if len(looks) == 3:
            RunDirectory(going).write_status("finished", step=40, steps=50)

    monkeypatch.setattr(watching.time, "sleep", pause)
    assert watch(WatchConfig(runs_dir=runs, poll_s=0.5)) == 0
    told = capsys.readouterr().out
    assert looks == [0.5] * 3
    changes = [line.partition(": ")[2] for line in told.splitlines() if line.startswith("going-")]
    assert changes == [
        "running at step 10 of 50  val 4.0000",
        "running at step 20 of 50  val 3.0000",
        "running at step 30 of 50  val 2.0000",
        "finished at step 40 of 50  val 1.0000",
    ]
    assert "3 runs: 1 failed, 2 finished" in told


def test_leaving_the_watch(runs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def leave(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", leave)
    assert watch(WatchConfig(runs_dir=runs)) == 130 and "the runs go on" in capsys.readouterr().out


@pytest.fixture
def wasteful(runs: str) -> dict[str, Path]:
    """Write checkpoints and leftovers in all three runs."""
    found: dict[str, Path] = {}
    for name in ("study/good", "study/bad", "going"):
        run = next(Path(runs).glob(f"{name}-*"))
        short = name.rpartition("/")[2]
        for step, loss in ((10, 2.0), (15, 2.5), (20, 3.0)):
            found[f"{short} {step}"] = checkpoint(run, step, loss)
        found[f"{short} half"] = checkpoint(run, 25, name=".tmp-step")
        found[f"{short} damaged"] = checkpoint(run, 12, name=".bad-step")
    return found


def test_gc_only_tells(runs: str, wasteful: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert collect_garbage(GcConfig(runs_dir=runs)) == 0
    told = capsys.readouterr().out
    assert all(path.exists() for path in wasteful.values())
    size = 1000 + len('{"val_loss": 2.5}')
    assert f"checkpoints: {wasteful['good 15']} ({size / 1000:.3g}kB)" in told
    assert "nothing was deleted; delete=true deletes 3.02kB" in told and "runs on their way: 1;" in told


def test_gc_keeps_what_is_needed(runs: str, wasteful: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Newest and best of the finished run, all of the failed one, which may go on, and of the running one."""
    assert collect_garbage(GcConfig(runs_dir=runs, delete=True)) == 0
    gone = {name for name, path in wasteful.items() if not path.exists()}
    assert gone == {"good 15", "good half", "bad half"} and "deleted: 3.02kB freed" in capsys.readouterr().out
    assert collect_garbage(GcConfig(runs_dir=runs, delete=True, what=("damaged",))) == 0
    gone = {name for name, path in wasteful.items() if not path.exists()}
    assert gone == {"good 15", "good half", "bad half", "good damaged", "bad damaged"}


def test_gc_keeps_the_best_whatever_other_checkpoints_say(runs: str, wasteful: dict[str, Path]) -> None:
    for loss in ("NaN", "true", '"x"', "[" * 200_000):
        (wasteful["good 15"] / "state.json").write_text(f'{{"val_loss": {loss}}}')
        assert find_extra_checkpoints(wasteful["good 15"].parents[1]) == [wasteful["good 15"]]


def test_gc_says_when_it_can_t(
    runs: str, wasteful: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(gc, "delete_path", refuse)
    assert collect_garbage(GcConfig(runs_dir=runs, delete=True)) == 5
    told = capsys.readouterr().out
    assert f"left: {wasteful['good 15']}: Permission denied" in told and "deleted: 0B freed" in told


def test_gc_of_code_waits_for_who_submits(
    runs: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code is copied before it is noted who needs it; meanwhile the records are locked."""
    code = Path(runs) / "study" / ".launch" / "code" / "0123456789ab"
    code.mkdir(parents=True)
    with hold_lock(code.parents[1] / "lock", wait=False):
        assert collect_garbage(GcConfig(runs_dir=runs, what=("code",), delete=True)) == 0
    assert code.exists() and "a command is submitting here" in capsys.readouterr().out
    whole = gc.delete_locked
    monkeypatch.setattr(gc, "find_study_garbage", lambda study, progress: iter(()))  # it is needed by now
    thing = gc.Garbage("code", code, 0)
    assert whole(thing, []) == "was submitted just now" and code.exists()
    monkeypatch.undo()
    assert collect_garbage(GcConfig(runs_dir=runs, what=("code",), delete=True)) == 0 and not code.exists()


def test_long_names_keep_what_tells_them_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write_run(tmp_path / "runs", [5.0, 3.0], name="n" * 90 + end) for end in "ab"]
    assert list_runs(ListConfig(runs_dir=str(tmp_path / "runs"))) == 0
    told = capsys.readouterr().out
    assert all(path.name[-20:] in told for path in paths)


def test_gc_leaves_a_run_that_has_just_been_started(
    runs: str, wasteful: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its status says that it is finished, but a process holds its lock."""
    lock = wasteful["good 15"].parents[1] / ".lock"
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    owner = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None and owner.stdout.readline()
        assert collect_garbage(GcConfig(runs_dir=runs, delete=True)) == 0
    finally:
        owner.communicate(b"\n")
    assert wasteful["good 15"].exists() and wasteful["good half"].exists() and not wasteful["bad half"].exists()
    assert "a process is training here" in capsys.readouterr().out


def test_gc_of_attempts_and_empty_runs(tmp_path: Path) -> None:
    study = tmp_path / "runs"
    first = write_run(study, [5.0, 3.0], name="again")
    for number in (2, 3):
        first.with_name(f"{first.name}-{number}").mkdir()
        for file in first.iterdir():
            (first.with_name(f"{first.name}-{number}") / file.name).write_bytes(file.read_bytes())
    RunDirectory(first.with_name(f"{first.name}-3")).write_status("stopped")
    empty = write_run(study, [5.0], name="empty", state="failed", **{"training.steps": 40})
    kept = write_run(study, [5.0, 4.0], name="diverged", state="diverged")
    assert collect_garbage(GcConfig(runs_dir=str(study), delete=True)) == 0
    assert first.exists() and empty.exists(), "only when they are named"
    assert collect_garbage(GcConfig(runs_dir=str(study), delete=True, what=("attempts", "empty"))) == 0
    left = {path.name for path in study.iterdir()}
    assert left == {f"{first.name}-2", f"{first.name}-3", kept.name}


def test_gc_follows_no_links(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", [5.0, 3.0])
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(bytes(100))
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / ".tmp-step-00000001").symlink_to(outside)
    assert collect_garbage(GcConfig(runs_dir=str(tmp_path / "runs"), delete=True)) == 0
    assert (outside / "precious").exists() and not os.path.lexists(run / "checkpoints" / ".tmp-step-00000001")
