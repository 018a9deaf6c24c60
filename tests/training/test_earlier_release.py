"""Runs that the first release began are found by this one, from any path, and end with the same bytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, command
from tests.tiny_config import write_corpus

RELEASE = "bb3612a"
WORDS = """
    model=tiny model.n_layer=1 model.n_head=2 model.n_embd=32 model.block_size=16 model.dropout=0.2
    training.batch_tokens=64 training.steps=12 schedule.warmup_steps=1 eval.every=3 eval.tokens=256 checkpoint.every=2
    tracking.log_every=1 tracking.sample_tokens=8 hardware=cpu hardware.threads=1 data=text data.tokenizer=char
"""
TINY = WORDS.split()
STUDY = ["-m", "name=study", "optimizer.lr=1e-3,3e-3"]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The files of the first release."""
    archive = subprocess.run(["git", "archive", RELEASE], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"commit {RELEASE} is not in this clone")
    folder = tmp_path / "release"
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def train_earlier(release: Path, folder: Path, *words: str) -> None:
    """`python train.py …` of the first release, given in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(release)}
    given = [sys.executable, str(release / "train.py"), *TINY, *words]
    subprocess.run(given, cwd=folder, env=environment, check=True, capture_output=True)


def rows(folder: Path) -> dict[str, bytes]:
    """The bytes of metrics.jsonl of each run, by its directory."""
    return {str(path.parent.relative_to(folder)): path.read_bytes() for path in folder.rglob("metrics.jsonl")}


@pytest.mark.slow
def test_runs_of_the_first_release_continue_to_the_same_bytes(release: Path, tmp_path: Path) -> None:
    half, whole, elsewhere = tmp_path / "half", tmp_path / "whole", tmp_path / "elsewhere"
    for folder in (half, whole, elsewhere):
        folder.mkdir()
        write_corpus(folder / "in.txt")
    for words in (["name=one"], ["name=two", "hardware.precision=bf16"], STUDY):
        train_earlier(release, whole, *words, "data.source=in.txt")
        train_earlier(release, half, *words, "data.source=in.txt", "pause_at=0.5")
    train_earlier(release, half, *STUDY[:2], "optimizer.lr=1e-3", "data.source=in.txt")  # of two points one is finished
    assert rows(half).keys() == rows(whole).keys() and rows(half) != rows(whole)
    there = [f"runs_dir={half}/runs", f"data.dir={half}/data", f"data.source={half}/in.txt"]
    for folder, words in (
        (half, ["name=one", "data.source=in.txt"]),
        (elsewhere, ["name=two", "hardware.precision=bf16", *there[:2], "data.source=./in.txt"]),
        (elsewhere, [*STUDY, *there]),
    ):
        done = command("train.py", *TINY, *words, folder=folder)
        assert done.returncode == 0 and "continuing at step 6" in done.stdout, done.stdout + done.stderr
    assert rows(half) == rows(whole)
    again = command("train.py", *TINY, "name=one", *there, folder=elsewhere)
    assert "finished at step 12" in again.stdout and rows(half) == rows(whole)
