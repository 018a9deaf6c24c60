"""`format=json`: one strict document on standard output, with the keys of docs/json.md and the table's own values."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.launcher_config import LocalLauncher
from launch.study import RECORDS, PlannedRun, Study
from launch.submission import SubmissionSpec, create_submission
from nanogpt.formatting import format_count, format_duration
from nanogpt.json_output import print_result, to_json_value
from nanogpt.run_directory import RunDirectory
from tests.cli_helpers import error_message
from tests.commands import ROOT, command
from tests.experiments.fake_runs import seeds, write_run
from tests.json_documents import check_document, read_strict

TINY = ("model=tiny", "hardware=cpu", "data=pystdlib")


def ask(folder: Path, *words: str, **environment: str) -> tuple[Any, str]:
    """Give a command as a table and as JSON; return the document and the table."""
    table, document = (
        command("-m", "cli", *words, *more, folder=folder, **environment) for more in ((), ("format=json",))
    )
    assert (table.returncode, document.returncode) == (0, 0), document.stderr
    return read_strict(document.stdout), table.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two settings of three and two seeds, and a run that failed."""
    seeds(tmp_path / "runs" / "slow", [2.0, 2.25, 2.0625])
    seeds(tmp_path / "runs" / "fast", [1.875, 1.9375], **{"optimizer.lr": 3e-4})
    write_run(tmp_path / "runs", [5.5, 3.0], "broken", state="failed", why="RuntimeError: boom\x1b")
    return tmp_path


def test_values_that_json_has_not() -> None:
    @dataclass
    class Result:
        path: Path
        losses: tuple[float, ...]
        steps: dict[int, Any]

    given = Result(Path("runs/\udc80"), (math.nan, math.inf, 1e300, np.float64(0.1)), {1: np.int64(3), 2: True})
    assert read_strict(json.dumps(to_json_value(given), allow_nan=False)) == {
        "path": "runs/\\udc80",
        "losses": [None, None, 1e300, 0.1],
        "steps": {"1": 3, "2": True},
    }


def test_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "correct-horse-battery")
    print_result("json", {"why": "refused correct-horse-battery"}, print)
    assert read_strict(capsys.readouterr().out) == {"why": "refused <hidden>"}


def test_list(folder: Path) -> None:
    document, table = ask(folder, "list")
    check_document(document, "list")
    runs = {run["run"]: run for run in document["runs"]}
    assert len(runs) == 6 and document["comparable"]["unit"] == "nats" and document["problems"] == []
    for name, run in runs.items():
        (row,) = [line for line in table.splitlines() if f" {name.removeprefix('runs/')} " in line]
        for text in (run["state"], f"{run['step']}/{run['steps']}", f"{run['val_loss']:.4f}", "1k"):
            assert text in row
        assert run["tokens_per_s"] == 1000.0 and run["updated_unix_s"] > 1e9
    (failed,) = [run for run in runs.values() if run["state"] == "failed"]
    assert failed["why"] == "RuntimeError: boom\\x1b" or failed["why"] == "RuntimeError: boom\x1b"
    only, _ = ask(folder, "list", "state=failed")
    assert only["runs"] == [failed]


def test_status(folder: Path) -> None:
    study = folder / "runs" / "fast"
    planned = [PlannedRun(path, RunDirectory(path).read_config()) for path in sorted(study.glob("seed*"))]
    spec = SubmissionSpec(
        executor="local",
        launcher=LocalLauncher().model_dump(mode="json"),
        resources={"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "cpus_per_task": None},
        code="code",
        cwd=str(folder),
        logs=str(study / "logs"),
        python="python",
        command=["train.py"],
        time=1.0,
        jobs=(),
    )
    (study / RECORDS).mkdir()
    create_submission(Study(study, planned), planned, spec)
    document, table = ask(folder, "status", "fast")
    check_document(document, "status")
    assert document["study"] == str(study) and len(document["points"]) == 2
    for point in document["points"]:
        (row,) = [line for line in table.splitlines() if Path(point["run"]).name in line]
        assert point["state"] in row and f"{point['val_loss']:.4f}" in row and "20/20" in row


def test_compare(folder: Path) -> None:
    document, table = ask(folder, "compare", "slow", "fast", "out=page")
    check_document(document, "compare")
    a, b = document["sides"]
    assert a["val_loss"]["mean"] == np.mean([2.0, 2.25, 2.0625]) and b["seeds"] == [1, 2]
    for side in (a, b):
        loss = side["val_loss"]
        assert f"{loss['mean']:.4f} ± {loss['half_width']:.4f}" in table and side["val_loss"]["seeds"] in (2, 3)
    gap = b["difference"]
    assert f"{gap['mean']:+.4f} ± {gap['half_width']:.4f}" in table and gap["verdict"] == "undecided"
    assert gap["seeds_needed"] > 3 and "not told" in table
    for cost in document["equal_cost"]:
        assert all(f"{value['mean']:.4f} ± {value['half_width']:.4f}" in table for value in cost["values"].values())
    (lr,) = [setting for setting in document["settings"] if setting["key"] == "optimizer.lr"]
    assert lr["values"] == {"A": 0.01, "B": 3e-4} and lr["changes_result"]
    assert all((folder / file).exists() and file in table for file in document["files"])


@pytest.mark.slow
def test_next(folder: Path) -> None:
    document, table = ask(folder, "next", "slow", "fast")
    check_document(document, "next")
    beyond, *others = document["proposals"]
    assert beyond["gain"] is None and len(others) == 3 and document["best"] in table
    for proposal in others:
        assert f"{proposal['half_width']:.4f} -> {proposal['half_width_then']:.4f}" in table
        assert proposal["runs"][0]["command"] in table and f"{proposal['gain_per_hour']:.3g}" in table


def test_sizing(folder: Path) -> None:
    document, table = ask(folder, "sizing", "model=gpt2", "sizing.gpu=h100", "sizing.price=2")
    check_document(document, "sizing")
    for count in (*document["parameters"].values(), *map(round, document["forward_flops"].values())):
        assert f"{count:,}" in table
    (gpu,) = document["gpus"]
    assert f"up to {gpu['max_micro_batch_size']}" in table and format_duration(gpu["time_s"]) in table
    assert f"${gpu['cost_dollars']:,.2f}" in table and gpu["cost_dollars"] == 2 * gpu["gpu_hours"]
    assert f"{format_count(document['memory']['total_bytes'], 'G')}B" in table


def test_scaling(folder: Path) -> None:
    document, table = ask(folder, "scaling")
    check_document(document, "scaling")
    assert len(document["optima"]) == 10 and document["law"]["E"] == 1.69
    for optimum in document["optima"]:
        assert f"{optimum['loss']:.3f}" in table and format_count(optimum["n_params"]) in table


def test_the_plan_of_a_run(folder: Path) -> None:
    document, table = ask(folder, "train", *TINY, "dry_run=true")
    check_document(document, "plan")
    assert f"{document['steps']:,} steps of {document['batch_tokens']:,} tokens" in table
    assert format_count(document["parameters"]["total"]) in table and f"{document['flops']:.3g} FLOPs" in table
    assert document["vocab_size_assumed"] and document["run"].startswith("runs/tiny-pystdlib-")
    assert f"about {format_count(document['needed_bytes'], 'G')}B" in table
    assert not (folder / "data").exists() and not (folder / document["run"]).exists()


@pytest.mark.parametrize("launcher", ["basic", "submitit_local"])
def test_the_plan_of_a_sweep(folder: Path, launcher: str) -> None:
    words = ("train", "-m", *TINY, "name=rates", "dry_run=true", f"hydra/launcher={launcher}")
    document, table = ask(folder, *words, "optimizer.lr=1e-3,3e-4")
    check_document(document, "plan of a sweep")
    assert document["study"] == "runs/rates" and "study   runs/rates: 2 points, 2 to " in table
    assert [point["starts"] for point in document["points"]] == [True, True] and document["time_s"] is None
    assert len(document["resources"]) == (launcher != "basic")
    memory = document["points"][0]["forecast"]["memory_bytes"]
    assert f"memory  about {format_count(memory, 'G')}B" in table


def test_doctor(folder: Path) -> None:
    document, table = ask(folder, "doctor", "checks=[python,slurm,data]", PATH="/nowhere")
    check_document(document, "doctor")
    assert [check["name"] for check in document["checks"]] == ["python", "slurm", "data"] and document["failed"] == []
    assert all(check["what"] in table and (check["remedy"] or "") in table for check in document["checks"])


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("list", ["format=jsn"], "format=jsn: not a choice; allowed: one of text, json; did you mean 'json'?"),
        ("train", ["format=json"], "format=json: is for train.py with dry_run=true, and for nanogpt sizing"),
        ("bench", ["format=json", "dry_run=true"], "format=json: is for train.py with dry_run=true"),
        ("coordinates", ["format=json"], "format=json: is for train.py with dry_run=true"),
        ("sizing", ["-m", "format=json", "model=tiny,baby"], "format=json: prints one document"),
        ("watch", ["format=json"], "format: no such key or group"),
    ],
)
def test_refusals(name: str, words: list[str], message: str) -> None:
    assert message in error_message(name, words)


@pytest.mark.parametrize("words", [["list", "nothing"], ["logs"], ["train", "-m", "model=tiny", "training.seed=1,2"]])
def test_an_error_leaves_standard_output_empty(tmp_path: Path, words: list[str]) -> None:
    done = command("-m", "cli", *words, "format=json", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1


def test_a_closed_pipe_is_no_error(folder: Path) -> None:
    script = f"{sys.executable} -m cli list format=json | true; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run(["bash", "-c", script], cwd=folder, env=environment).returncode == 0
