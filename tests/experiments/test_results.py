"""Results read from run directories, against simple arithmetic; damage is reported and never stops a report."""

import json
import os
from pathlib import Path

import pytest

from experiments import find
from experiments.find import find_runs, read_statuses
from experiments.ranking import group_by_seed, sort_groups
from experiments.results import RunResult, read_result, read_results
from experiments.tables import run_table
from launch.status import RunStatus, read_run
from nanogpt.config import TargetsConfig
from nanogpt.errors import BadInput
from nanogpt.estimates.flops import flops_per_token
from nanogpt.run_directory import RunDirectory
from tests.experiments.fake_runs import BATCH, write_run


def result(path: Path) -> RunResult:
    return read_result(read_run(path))


def test_losses_tokens_and_flops(tmp_path: Path) -> None:
    run = result(write_run(tmp_path, [5.0, 2.0, 2.5]))
    assert (run.value("val_loss"), run.value("best_val_loss"), run.step, run.tokens) == (2.5, 2.0, 20, 20 * BATCH)
    cost = flops_per_token(run.config.model.with_vocab(256))
    assert run.x_values(run.evals, "flops") == [0, 10 * BATCH * cost, 20 * BATCH * cost]
    assert run.x_values(run.evals, "tokens") == [0, 10 * BATCH, 20 * BATCH] and not run.problems


def test_epochs_are_those_of_the_last_row(tmp_path: Path) -> None:
    """A run from before rows had their epoch has a dash in the table of runs."""
    path = write_run(tmp_path, [5.0, 2.0, 2.5])
    assert result(path).epochs is None
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"epoch": row["tokens"] / 1000}) for row in rows]
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    run = result(path)
    assert run.epochs == 20 * BATCH / 1000
    table = run_table([run])
    assert table.rows[0][table.columns.index("epochs")].text == f"{20 * BATCH / 1000:.3g}"


def test_time_is_that_of_the_steps(tmp_path: Path) -> None:
    """10 steps at 1,280 tokens/s, then 10 at 320: 1 s and 4 s; in between it is interpolated."""
    run = result(write_run(tmp_path, [5.0, 3.0, 2.0], rates=[1280.0, 320.0]))
    assert run.seconds == pytest.approx(5) and run.tokens_per_second == pytest.approx(20 * BATCH / 5)
    assert run.x_values(run.evals, "time") == pytest.approx([0, 1, 5])
    assert run.x_values(run.train, "time") == pytest.approx([0.5, 1, 3, 5])


def test_device_hours_are_times_ranks_of_the_start_that_made_the_steps(tmp_path: Path) -> None:
    """Two ranks for the first 10 steps, then a start that got nowhere, then four ranks."""
    gpu = {"ranks": 2, "device": "cuda"}
    starts = [
        {"arithmetic": gpu},
        {"from_step": 20, "arithmetic": gpu | {"ranks": 8}},
        {"from_step": 10, "arithmetic": gpu | {"ranks": 4}},
    ]
    run = result(write_run(tmp_path, [5.0, 3.0, 2.0], rates=[1280.0, 320.0], starts=starts))
    assert run.device_seconds == pytest.approx(1 * 2 + 4 * 4) and run.gpu


def test_ranks_that_nobody_noted_are_unknown(tmp_path: Path) -> None:
    run = result(write_run(tmp_path, [5.0, 3.0], starts=[{"arithmetic": {}}]))
    assert run.device_seconds is None and run.seconds is not None
    assert result(write_run(tmp_path, [5.0, 3.0], name="other", starts=[])).device_seconds is None


def test_damaged_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path, [5.0, 3.0, 2.0])
    whole = result(path)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "tokens": 1, "val_loss": NaN}\n{"step": 16}\n[1]\n\x00\x00\n{"step": 17, "tok')
    (path / "timing.jsonl").write_text((path / "timing.jsonl").read_text() + '{"step": 30, "tokens_per_second": "x"}\n')
    run = result(path)
    assert (run.evals, run.train, run.clock) == (whole.evals, whole.train, whole.clock)
    assert [problem.rpartition(" ")[2] for problem in run.problems] == ["5", "1"]


@pytest.mark.parametrize("file", ["metrics.jsonl", "timing.jsonl", "status.json", "provenance.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b'{"a": 1', b"[]", b'"x"', b"[" * 200_000])
def test_any_file_may_be_missing_or_nonsense(tmp_path: Path, file: str, content: bytes | None) -> None:
    path = write_run(tmp_path, [5.0, 3.0])
    if content is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(content)
    run = result(path)
    if file != "metrics.jsonl":
        assert run.value("val_loss") == 3.0
    assert (run.flops_per_token is None) == (file == "tokenizer.json")


HUGE = "9" * 400


@pytest.mark.parametrize(
    "row",
    [
        f'{{"step": {HUGE}, "tokens": 1, "val_loss": 1.0}}',
        f'{{"step": 21, "tokens": {HUGE}, "val_loss": 1.0}}',
        '{"step": 9999999999999999999999999, "tokens": 1, "val_loss": 1.0}',
        '{"step": 21, "tokens": 1, "val_loss": 1e308}',
        '{"step": 21, "tokens": 1, "val_loss": Infinity}',
        '{"step": -5, "tokens": 1, "val_loss": 1.0}',
        '{"step": true, "tokens": true, "val_loss": true}',
        "[" * 3000,
    ],
    ids=lambda row: row[:50],
)
def test_numbers_that_nobody_measured_are_left_out(tmp_path: Path, row: str) -> None:
    path = write_run(tmp_path, [5.0, 3.0, 2.0])
    whole = result(path)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(row + "\n")
    run = result(path)
    assert (run.evals, run.train) == (whole.evals, whole.train) and "lines: 1" in run.problems[0]
    seen = read_run(path)
    assert (seen.step, seen.val, seen.best) == (20, 2.0, 2.0)


def test_a_status_may_say_anything(tmp_path: Path) -> None:
    path = write_run(tmp_path, [5.0, 3.0, 2.0])
    for nonsense in ("x", -5, [1], 10**400, 1e308, True):
        text = json.dumps(
            {"state": "finished", "step": nonsense, "steps": nonsense, "best": [[nonsense]], "pid": nonsense}
        )
        (path / "status.json").write_text(text)
        seen = read_run(path)
        assert (seen.state, seen.step, seen.steps, seen.best) == ("finished", 20, None, 2.0)
    (path / "provenance.json").write_text(json.dumps([{"from_step": 0, "arithmetic": {"ranks": 10**400}}]))
    assert result(path).device_seconds is None


def test_a_finished_run_without_its_last_evaluation_has_no_result(tmp_path: Path) -> None:
    """Or that of an earlier step would be taken for it."""
    path = write_run(tmp_path, [5.0, 3.0, 2.0])
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[:-1]))
    run = result(path)
    assert run.finished and not run.complete and "lacks the evaluation of its last step" in run.problems[0]
    good, rest = sort_groups(group_by_seed([run]), "val_loss")
    assert not good and len(rest) == 1


def test_a_link_to_a_run_is_no_second_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "runs" / "study", [5.0, 3.0])
    (tmp_path / "runs" / "alias").symlink_to(run.parent)
    assert len(find_runs(TargetsConfig(runs_dir=str(tmp_path / "runs"))).runs) == 1
    monkeypatch.chdir(tmp_path)
    assert find_runs(TargetsConfig(targets=("runs/study", str(run)))).runs == [run.relative_to(tmp_path)]


def test_closed_folders_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who may not look into them: root may, so the question is answered here."""
    run = write_run(tmp_path / "runs" / "study", [5.0, 3.0])
    closed = tmp_path / "runs" / "closed"
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)
    found = find_runs(TargetsConfig(runs_dir=str(tmp_path / "runs")))
    assert found.runs == [run] and read_statuses(found)[1] == [f"{closed}: this folder can't be read"]
    with pytest.raises(BadInput, match="closed: this folder can't be read"):
        find_runs(TargetsConfig(targets=(str(closed),)))


def test_files_that_can_t_be_opened_cost_their_run_alone(tmp_path: Path) -> None:
    good, *bad = (write_run(tmp_path, [5.0, 3.0], name=name) for name in ("good", "loop", "folder"))
    for path, file in zip(bad, ("metrics.jsonl", "config.json"), strict=True):
        (path / file).unlink()
    (bad[0] / "metrics.jsonl").symlink_to("metrics.jsonl")
    (bad[1] / "config.json").symlink_to(tmp_path)
    statuses = [read_run(path) for path in (good, *bad)]
    results, problems = read_results(statuses)
    assert [one.path for one in results] == [good]
    assert "metrics.jsonl can't be read: Too many" in problems[0] and "can't be read: Is a dir" in problems[1]


def test_a_run_whose_config_is_nonsense_is_told(tmp_path: Path) -> None:
    good, bad = write_run(tmp_path, [5.0, 3.0]), write_run(tmp_path, [5.0, 3.0], name="bad")
    (bad / "config.json").write_text("{")
    statuses, _ = read_statuses(find_runs(TargetsConfig(targets=(str(tmp_path),))))
    results, problems = read_results(statuses)
    assert [one.path for one in results] == [good] and "bad-" in problems[0] and "left out" in problems[0]


def test_states_of_runs_without_a_launcher(tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path, [5.0, 3.0])).state == "finished"
    failed = read_run(write_run(tmp_path, [5.0], name="failed", state="failed", why="RuntimeError: boom"))
    assert (failed.state, failed.why) == ("failed", "RuntimeError: boom")
    going = write_run(tmp_path, [5.0, 3.0], name="going", state="running")
    assert read_run(going).state == "running"  # this very process wrote it
    status = (going / "status.json").read_text().replace('"pid": ', '"pid": 99999999')
    (going / "status.json").write_text(status)
    assert read_run(going).state == "lost" and "the same command continues" in read_run(going).why
    (going / "status.json").unlink()
    assert read_run(going).state == "new"


def test_a_launchers_word_counts_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run(tmp_path, [5.0, 3.0], state="running")
    (tmp_path / ".launch").mkdir()
    point = RunStatus(path, state="lost", why="its node failed")
    monkeypatch.setattr(find, "read_points", lambda study, queues: [point])
    (seen,), problems = read_statuses(find_runs(TargetsConfig(targets=(str(tmp_path),))))
    assert (seen.state, seen.why, problems) == ("lost", "its node failed", []) and read_run(path).state == "running"


def test_what_a_person_may_name(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / "runs" / "study", [5.0, 3.0], name=name) for name in ("a", "b"))
    single = write_run(tmp_path / "runs", [5.0, 3.0], name="single")
    runs_dir = str(tmp_path / "runs")

    def named(*targets: str) -> list[Path]:
        return find_runs(TargetsConfig(targets=targets, runs_dir=runs_dir)).runs

    assert named() == [single, a, b]
    assert named("study") == named(str(tmp_path / "runs" / "study")) == named("study/*") == [a, b]
    assert named(str(b), "study") == [b, a] and named("single*") == [single]
    latest = find_runs(TargetsConfig(runs_dir=runs_dir), latest=True)
    assert latest.runs == [single]
    RunDirectory(a).write_status("running")
    assert find_runs(TargetsConfig(runs_dir=runs_dir), latest=True).folders == [a.parent]


def test_what_nobody_can_mean(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "study", [5.0, 3.0], name="point")
    (tmp_path / "runs" / "notes").mkdir()
    (run,) = (tmp_path / "runs" / "study").glob("point-*")
    for target, expected in {
        "studdy": "studdy: no such study or run; did you mean 'study'?",
        "notes": "notes: not a run directory, and none in it",
        "none*": "none*: no such study or run",
        run.name[:-1]: f"did you mean '{run.name}'",
    }.items():
        with pytest.raises(BadInput) as refused:
            find_runs(TargetsConfig(targets=(target,), runs_dir=str(tmp_path / "runs")))
        assert expected in str(refused.value)
    with pytest.raises(BadInput, match="no runs; train some first"):
        find_runs(TargetsConfig(runs_dir=str(tmp_path / "nothing")))
