"""A training in this process, its model, its metrics and its study, against the files and the commands."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import nanogpt
from nanogpt.errors import BadInput
from tests.commands import command
from tests.tiny_config import write_corpus


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> nanogpt.Run:
    """The better of the two runs of a study."""
    folder = tmp_path_factory.mktemp("api")
    words = ["model=tiny", "model.n_layer=1", "data=text", "data.tokenizer=char", "hardware=cpu", "eval.every=10"]
    words += ["training.steps=20", "schedule.warmup_steps=0", "training.batch_tokens=768", "eval.tokens=512"]
    words += [f"data.source={write_corpus(folder / 'corpus.txt')}", f"data.dir={folder}", f"runs_dir={folder}/study"]
    runs = [nanogpt.train(nanogpt.compose("train", [*words, f"optimizer.lr={rate}"])) for rate in (1e-5, 1e-2)]
    return runs[1]


def test_a_finished_run_is_loaded(run: nanogpt.Run) -> None:
    again = nanogpt.train(run.config)
    assert again.path == run.path and again.step == 20 and again.config == run.config


def test_a_new_attempt_is_what_is_returned(run: nanogpt.Run) -> None:
    again = nanogpt.train(run.config.model_copy(update={"new_attempt": True}))
    assert again.path != run.path and again.step == 20 and again.val_loss == run.val_loss
    shutil.rmtree(again.path)
    with pytest.raises(BadInput, match="dry_run and replay"):
        nanogpt.train(run.config.model_copy(update={"dry_run": True}))


def test_rows_are_those_of_the_files(run: nanogpt.Run) -> None:
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    evaluations = {row["step"]: row["val_bpb"] for row in rows if "val_bpb" in row}
    assert run.metrics()["loss"].to_dict() == losses
    assert run.evaluations()["val_bpb"].to_dict() == evaluations and list(evaluations) == [0, 10, 20]
    assert run.val_loss == min(run.evaluations()["val_loss"])


def test_samples_are_those_of_the_command(run: nanogpt.Run, tmp_path: Path) -> None:
    words = [f"run={run.path}", "prompt=a", "num_samples=2", "max_new_tokens=12", "seed=3", "device=cpu", "out=a.jsonl"]
    assert command("sample.py", *words, folder=tmp_path).returncode == 0
    expected = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert run.sample("a", 2, max_new_tokens=12, seed=3) == expected
    assert run.sample("a", 2, max_new_tokens=12, seed=3, batch_size=2) == expected
    with pytest.raises(BadInput, match="temprature: no such key; did you mean 'temperature'"):
        run.sample("a", temprature=1.0)
    with pytest.raises(BadInput, match=r"precision: is for sample.py"):
        run.sample("a", precision="bf16")


def test_logits_give_the_loss(run: nanogpt.Run) -> None:
    ids = torch.randint(len(run.tokenizer.tokens), (8,))
    logits = run.logits(ids)
    assert logits.shape == (8, len(run.tokenizer.tokens))
    expected = run.model(ids[None, :-1], ids[None, 1:]).detach()
    torch.testing.assert_close(F.cross_entropy(logits[:-1], ids[1:], reduction="sum"), expected)
    assert torch.equal(run.logits(ids[None].tolist())[0], logits)
    several: list[Any] = [[], [0.5], [10**6], [[[1]]], [0] * 1000]
    for wrong in several:
        with pytest.raises(BadInput, match=r"^ids: "):
            run.logits(wrong)


def test_a_study(run: nanogpt.Run) -> None:
    study = nanogpt.study(run.path.parent)
    assert study.best == run.path and study.notes == ()
    points = study.points
    assert points.loc[str(run.path), "optimizer.lr"] == 1e-2 and points.loc[str(run.path), "rank"] == 1
    assert sorted(points["rank"]) == [1, 2] and set(points["state"]) == {"finished"}
    assert points.loc[str(run.path), "val_loss"] == run.evaluations()["val_loss"].iloc[-1]
    curves = study.curves("loss")
    assert isinstance(curves, pd.DataFrame)
    assert curves.loc[str(run.path)].set_index("steps")["loss"].to_dict() == run.metrics()["loss"].to_dict()
    with pytest.raises(BadInput, match=r"key=los: no run logged it; allowed: .*loss"):
        study.curves("los")
    with pytest.raises(BadInput, match="no such study or run"):
        nanogpt.study("nothing", runs_dir=run.path.parent)
