"""Benchmarks while training: rows, interruptions, ranks, and what is missing."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.config import EvaluateConfig, TrainConfig
from nanogpt.errors import BadData
from nanogpt.evaluation.command import evaluate
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.schema import from_dict
from nanogpt.training.run import train
from tests import ranks
from tests.evaluation.benchmarks import write_hellaswag, write_lambada
from tests.ranks import Fault

Build = Callable[..., TrainConfig]


@pytest.fixture
def build(config: Build, tmp_path: Path) -> Build:
    """A config with two benchmarks."""
    settings = {
        "data.tokenizer": "byte",
        "training.eval_tasks": ["hellaswag", "lambada"],
        "training.eval_limit": 4,
        "eval.hellaswag": str(write_hellaswag(tmp_path)),
        "eval.lambada": str(write_lambada(tmp_path)),
    }
    return lambda **changes: config(**{**settings, **changes})


def test_rows_are_what_the_command_finds(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    built = build()
    assert train(built) == 0
    assert "hellaswag_acc_norm" in capsys.readouterr().out
    run = RunDirectory(locate_run(built))
    rows = {row["step"]: row for row in read_rows(run.metrics.path) if "val_loss" in row}
    assert sorted(rows) == [0, 5, 10, 15, 20]
    questions = {"tasks": ["hellaswag", "lambada"], "limit": 4, "hellaswag": built.eval.hellaswag}
    wanted = {"runs_dir": built.runs_dir, "checkpoint": "latest", "device": "cpu"}
    evaluate(from_dict(EvaluateConfig, wanted | {"eval": questions | {"lambada": built.eval.lambada}}))
    import json

    found = [json.loads(line) for line in (run.path / "evaluations.jsonl").read_text().splitlines()]
    for row in found:
        for name, value in row["metrics"].items():
            if not name.endswith("_stderr"):
                assert rows[20][f"{row['task']}_{name}"] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("action", ["SIGKILL", "SIGTERM"])
def test_an_interruption_inside_a_benchmark_changes_nothing(build: Build, tmp_path: Path, action: str) -> None:
    undisturbed = build(runs_dir=str(tmp_path / "undisturbed"))
    assert ranks.run(undisturbed)[0] == [0]
    built = build()
    code = ranks.run(built, 1, [Fault("nanogpt.evaluation.scoring.score_batch", 6, action)])[0]
    assert code == [-signal.SIGKILL if action == "SIGKILL" else 85]
    assert ranks.run(built)[0] == [0]
    assert ranks.result(built) == ranks.result(undisturbed)


def test_ranks_share_the_work(build: Build, tmp_path: Path) -> None:
    """Two ranks round their gradients as one does at step 0, before there are any."""
    rows: list[dict[str, float]] = []
    for world in (1, 2):
        built = build(runs_dir=str(tmp_path / f"ranks-{world}"), **{"training.steps": 1})
        codes, output = ranks.run(built, world)
        assert codes == [0] * world, output
        rows.append(next(row for row in read_rows(locate_run(built) / "metrics.jsonl") if "val_loss" in row))
    assert rows[0] == rows[1] and "hellaswag_acc" in rows[0]


def test_missing_documents_end_it_before_it_starts(build: Build, tmp_path: Path) -> None:
    built = build(**{"eval.lambada": str(tmp_path / "nowhere")})
    with pytest.raises(BadData, match=r"eval.lambada=.*nowhere: no such file"):
        train(built)
    assert not Path(built.runs_dir).exists()
    codes, output = ranks.run(built, 2)
    assert codes == [3, 3] and output.count("no such file") == 1
