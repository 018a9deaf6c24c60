"""`python evaluate.py` as a person uses it."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nanogpt.config import EvaluateConfig, ExportConfig, TrainConfig
from nanogpt.distributed.env import STORE_VARIABLE
from nanogpt.errors import BadCheckpoint, BadData, BadInput
from nanogpt.evaluation import scoring
from nanogpt.evaluation.command import evaluate
from nanogpt.files import hold_lock
from nanogpt.interop.export import export_model
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.schema import from_dict
from nanogpt.training.run import train
from tests.conftest import ROOT, Run
from tests.evaluation.benchmarks import write_hellaswag, write_lambada, write_wikitext
from tests.json_documents import check_document, read_strict

Build = Callable[..., TrainConfig]
ALL = ["loss", "wikitext", "lambada", "hellaswag"]


@pytest.fixture
def trained(config: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> TrainConfig:
    """Return the config of a run below the folder that `run` works in."""
    built = config(
        **{"training.steps": 5, "data.tokenizer": "byte", "eval.tokens": None}, runs_dir=str(tmp_path / "work" / "runs")
    )
    train(built)
    capsys.readouterr()
    return built


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Return the paths of the benchmarks, by key."""
    writers = {"hellaswag": write_hellaswag, "lambada": write_lambada, "wikitext": write_wikitext}
    return {name: str(write(tmp_path)) for name, write in writers.items()}


def wanted(trained: TrainConfig, files: dict[str, str], *tasks: str, **more: object) -> EvaluateConfig:
    limit = more.pop("limit", None)
    return from_dict(
        EvaluateConfig,
        {"runs_dir": trained.runs_dir, "device": "cpu", "eval": {**files, "tasks": [*tasks], "limit": limit}, **more},
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_table_and_lines(trained: TrainConfig, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """A run may go on meanwhile: its lock isn't needed. What is added never replaces what was there."""
    run = RunDirectory(locate_run(trained))
    with hold_lock(run.path / ".lock", wait=False) as mine:
        assert mine
        assert evaluate(wanted(trained, files, *ALL)) == 0
    out = capsys.readouterr().out
    for word in (
        "val_loss",
        "perplexity",
        "bits_per_byte",
        "word_perplexity",
        "acc_norm",
        "±",
        "92 windows",
        "6 documents",
        "per second",
    ):
        assert word in out
    rows = lines(run.path / "evaluations.jsonl")
    assert [row["task"] for row in rows] == ALL
    assert [row["documents"] for row in rows[1:]] == [6, 6, 6]
    step = run.checkpoints.best_step()
    assert step is not None
    manifest = json.loads((run.checkpoints.path(step) / "manifest.json").read_bytes())
    assert {(row["step"], row["sha256"]) for row in rows} == {(step, manifest["sha256"])}
    at_step = next(row for row in lines(run.metrics.path) if row["step"] == step and "val_loss" in row)
    loss = rows[0]["metrics"]
    assert (loss["val_loss"], loss["bits_per_byte"]) == (at_step["val_loss"], at_step["val_bpb"])
    assert loss["perplexity"] == pytest.approx(math.exp(at_step["val_loss"]))
    evaluate(wanted(trained, files, "lambada", limit=2, checkpoint="latest"))
    assert lines(run.path / "evaluations.jsonl")[:4] == rows
    last = lines(run.path / "evaluations.jsonl")[4]
    assert (last["documents"], last["limit"], last["step"]) == (2, 2, 5)
    assert last["data"] != rows[2]["data"]


def on_two_ranks(run: Run, store: Path, *words: str) -> list[subprocess.CompletedProcess[str]]:
    """Give a command as each of two ranks."""

    def start(rank: int) -> subprocess.CompletedProcess[str]:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, STORE_VARIABLE: store}
        return run("evaluate.py", *words, **{name: str(value) for name, value in places.items()})

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(start, range(2)))


@pytest.mark.parametrize("starts", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_command_on_one_rank_and_on_several(
    run: Run, trained: TrainConfig, files: dict[str, str], tmp_path: Path, starts: bool
) -> None:
    """One rank, two, two that the command starts, and torchrun's two: the same bits."""
    words = ["eval=all", "device=cpu", "batch_tokens=64", *(f"eval.{name}={path}" for name, path in files.items())]
    work, several = tmp_path / "work", ["two"]
    done = [run("evaluate.py", *words, "out=one.jsonl"), *on_two_ranks(run, tmp_path / "s", *words, "out=two.jsonl")]
    if starts:
        several += ["started", "torchrun"]
        done += [run("evaluate.py", *words, "devices=2", "out=started.jsonl")]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [*torchrun, str(ROOT / "evaluate.py"), *words, "out=torchrun.jsonl"]
        done += [subprocess.run(command, cwd=work, capture_output=True, text=True, env=os.environ)]
    assert [one.returncode for one in done] == [0] * len(done), done
    assert [one.stdout.count("hellaswag") for one in done] == [2, 2, 0, *[2] * (len(done) - 3)], "one rank tells"
    alone = [row["metrics"] for row in lines(work / "one.jsonl")]
    for name in several:
        rows = lines(work / f"{name}.jsonl")
        assert [row["metrics"] for row in rows] == alone and {row["ranks"] for row in rows} == {2}
    assert not (locate_run(trained) / "evaluations.jsonl").exists()


@pytest.mark.slow
def test_one_json_document_of_two_ranks(run: Run, trained: TrainConfig, files: dict[str, str]) -> None:
    """Its numbers are those that were appended. Rank 0 alone prints, and nothing else is on standard output."""
    words = [f"eval.{name}={path}" for name, path in files.items()]
    done = run("evaluate.py", "eval.tasks=[loss,hellaswag]", "device=cpu", "devices=2", "format=json", *words)
    assert done.returncode == 0, done.stderr
    document = read_strict(done.stdout)
    check_document(document, "evaluate")
    rows = lines(Path(trained.runs_dir).parent / document["out"])
    assert [result["metrics"] for result in document["results"]] == [row["metrics"] for row in rows]
    assert [round(result["time_s"], 3) for result in document["results"]] == [row["seconds"] for row in rows]
    assert document["step"] == 5 and document["stopped_by"] is None and {row["ranks"] for row in rows} == {2}


def test_a_signal_keeps_what_is_done(
    trained: TrainConfig,
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[int] = []
    real = scoring.score_batch

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(scoring, "score_batch", interrupted)
    assert evaluate(wanted(trained, files, "loss", "hellaswag", batch_tokens=64)) == 85
    out = capsys.readouterr().out
    assert "val_loss" in out and "hellaswag" not in out
    assert "SIGINT: stopped after 1 of 2 tasks" in out
    assert len(lines(locate_run(trained) / "evaluations.jsonl")) == 1


def test_what_is_missing_is_told_before_anything_is_evaluated(
    trained: TrainConfig, files: dict[str, str], tmp_path: Path, config: Build
) -> None:
    with pytest.raises(BadData, match=r"eval.hellaswag=nowhere: no such file"):
        evaluate(wanted(trained, files | {"hellaswag": "nowhere"}, "loss", "hellaswag"))
    with pytest.raises(BadInput, match=r"out=\.: a folder; name a file"):
        evaluate(wanted(trained, files, "loss", out="."))
    other = config(**{"data.tokenizer": "char"}).data.model_dump()
    with pytest.raises(BadData, match=r"data=test: its \d+ tokens \(char\) aren't the model's 256 \(byte\)"):
        evaluate(wanted(trained, files, "loss", data=other))
    with pytest.raises(BadInput, match="run=none: not a run directory"):
        evaluate(wanted(trained, files, "loss", run="none"))
    for step in RunDirectory(locate_run(trained)).checkpoints.path(0).parent.glob("step-*"):
        os.truncate(step / "model.safetensors", 100)
    with pytest.raises(BadCheckpoint, match="has 100 bytes"):
        evaluate(wanted(trained, files, "loss"))
    assert not (locate_run(trained) / "evaluations.jsonl").exists()


def test_no_hub_is_an_environment_error(run: Run, trained: TrainConfig, tmp_path: Path) -> None:
    done = run("evaluate.py", "eval=hellaswag", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 5 and done.stderr.count("\n") == 1, done.stderr
    assert "Rowan/hellaswag: " in done.stderr and "use a local file with eval.hellaswag=PATH" in done.stderr


def test_a_char_model_cant_read_a_benchmark(config: Build, files: dict[str, str]) -> None:
    built = config(**{"training.steps": 1})
    train(built)
    with pytest.raises(BadInput, match=r"hellaswag: the character vocabulary of \d+ lacks 'A' at 0"):
        evaluate(wanted(built, files, "hellaswag"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init_from": "gpt2"}, "data=null: eval=loss with init_from needs a data set, e.g. data=openwebtext"),
        ({"data": {"tokenizer": "byte"}}, "data.tokenizer=byte: needs a data set; choose one"),
        ({"eval": {"tasks": ["hellaswg"]}}, "eval.tasks=hellaswg: not a choice; allowed: a list of loss, hellaswag"),
        ({"eval": {"tasks": []}}, "eval.tasks"),
        ({"eval": {"limit": 0}}, "eval.limit=0: out of range"),
        ({"devices": 0}, "devices=0: out of range"),
        ({"batch_tokens": 0}, "batch_tokens=0: out of range"),
    ],
)
def test_impossible_questions(values: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput) as error:
        from_dict(EvaluateConfig, values)
    assert message in str(error.value)


def test_weights_from_elsewhere(trained: TrainConfig, files: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    """The run's own model as another program has it: the same numbers, written where one says, or nowhere."""
    target = tmp_path / "hf"
    export_model(ExportConfig(runs_dir=trained.runs_dir, out=str(target)))
    elsewhere = {"init_from": str(target)}
    data = trained.data.model_dump()
    evaluate(wanted(trained, files, *ALL, out=str(tmp_path / "a.jsonl")))
    evaluate(wanted(trained, files, *ALL, out=str(tmp_path / "b.jsonl"), data=data, **elsewhere))
    a, b = lines(tmp_path / "a.jsonl"), lines(tmp_path / "b.jsonl")
    for ours, theirs in zip(a, b, strict=True):
        assert theirs["metrics"] == pytest.approx(ours["metrics"], rel=1e-5)
        assert (theirs["model"], theirs["step"], theirs["sha256"]) == (str(target), None, None)
    capsys.readouterr()
    assert evaluate(wanted(trained, files, *ALL, **elsewhere)) == 0
    out = capsys.readouterr().out
    assert "note: no loss" in out and "val_loss" not in out and "not saved; out=FILE" in out
