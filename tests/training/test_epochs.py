"""How often the data is trained on is said at the start, in the plan, in each row and in reports."""

import json
from collections.abc import Callable

import pytest

from nanogpt.config import SampleConfig, TrainConfig
from nanogpt.errors import BadInput
from nanogpt.generation.command import sample
from nanogpt.interop.load_model import read_start_ids
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.training.run import train

Build = Callable[..., TrainConfig]


def test_epochs_are_said(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    built = config(**{"training.steps": 3})
    assert train(built) == 0
    shown = capsys.readouterr().out
    path = locate_run(built)
    (start,) = json.loads((path / "provenance.json").read_text())
    there = start["train_tokens"]
    meta = next((path.parents[1]).rglob("meta.json"))
    assert there == json.loads(meta.read_text())["splits"]["train"]["tokens"]
    rows = read_rows(path / "metrics.jsonl")
    assert rows and all(row["epoch"] == round(row["tokens"] / there, 6) for row in rows)
    assert f"({3 * 128 / there:.3g} epochs of " in shown and "warning: training.batch_tokens" not in shown
    assert train(built.model_copy(update={"dry_run": True})) == 0
    assert f"({3 * 128 / there:.3g} epochs of " in capsys.readouterr().out


def test_a_run_from_before_goes_on_with_the_rows_it_had(config: Build) -> None:
    """Until then no row had its epoch, and the file of a run has rows of one form."""
    first = config(**{"training.steps": 6, "stop_at_fraction": 0.5})
    train(first)
    path = locate_run(first)
    starts = json.loads((path / "provenance.json").read_text())
    for start in starts:
        del start["train_tokens"], start["start_ids"]
    (path / "provenance.json").write_text(json.dumps(starts))
    before = [row for row in read_rows(path / "metrics.jsonl")]
    train(first.model_copy(update={"stop_at_fraction": None}))
    rows = read_rows(path / "metrics.jsonl")
    assert rows[: len(before)] == before and not any("epoch" in row for row in rows[len(before) :])


def test_a_step_larger_than_the_data_is_said(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    built = config(**{"training.steps": 1, "training.batch_tokens": 2**14, "hardware.micro_batch_size": 512})
    train(built)
    shown = capsys.readouterr().out
    there = RunDirectory(locate_run(built)).read_starts()[0]["train_tokens"]
    assert f"warning: training.batch_tokens=16384: each step is {2**14 / there:.3g} epochs of the" in shown
    train(built.model_copy(update={"dry_run": True}))
    assert "warning: training.batch_tokens=16384" in capsys.readouterr().out


def test_samples_start_as_recorded_or_as_the_data_shows(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    built = config(**{"training.steps": 1})
    train(built)
    run = RunDirectory(locate_run(built))
    from nanogpt import tokenizer as tokenizers

    tokenizer = tokenizers.load(run.path)
    recorded = run.read_starts()[-1]["start_ids"]
    assert read_start_ids(run, tokenizer) == recorded
    (run.path / "provenance.json").write_text(json.dumps([{"data": run.read_starts()[-1]["data"]}]))
    assert read_start_ids(run, tokenizer) == recorded, "the prepared data shows it"
    with pytest.raises(BadInput, match="special_tokens=true: the model's tokenizer has no special tokens"):
        sample(SampleConfig(runs_dir=built.runs_dir, special_tokens=True))
