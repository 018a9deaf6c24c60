"""What a run records about its validation, against plain counting; and the best loss after the data has changed."""

import hashlib
import math
from pathlib import Path

import numpy as np

from nanogpt.data.prepare import prepare
from nanogpt.files import read_json
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.training.run import train
from tests.tiny_config import tiny_config, write_corpus

QUICK = {"training.steps": 4, "eval.every": 2, "checkpoint.every": 2, "eval.train": False, "tracking.sample_tokens": 0}


def test_a_run_records_what_it_was_measured_on(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in.txt")
    config = tiny_config(tmp_path, corpus, **QUICK, **{"eval.tokens": None})
    assert train(config) == 0
    run, text = RunDirectory(locate_run(config)), corpus.read_text()
    about = run.read_starts()[0]["measurement"]
    held_out = text[int(len(text) * 0.9) :].encode()
    assert about["text"] == hashlib.sha256(held_out).hexdigest()
    assert (about["precision"], about["fp8"], about["vocab_size"]) == ("fp32", False, len(set(text)))
    windows = (len(held_out) - 1) // 16
    assert math.isclose(about["coverage"], windows * 16 / len(held_out), abs_tol=1e-4)
    ids = prepare(config.data).val.read(0, 0, len(held_out))
    digest = hashlib.sha256(b"16")
    for first in range(windows):
        digest.update(np.ascontiguousarray(ids[first * 16 : first * 16 + 17]).tobytes())
    assert about["windows"] == digest.hexdigest()
    state = read_json(run.checkpoints.path(4) / "state.json")
    assert state["measurement"] == about, "so that the best checkpoint is chosen among comparable ones"


def test_after_a_change_of_the_data_the_best_is_looked_for_anew(tmp_path: Path) -> None:
    """The validation text is easier before: its losses must not win over those on the new text."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    easy, hard = bytes([1, 0]) * 2000, np.random.default_rng(0).integers(0, 256, 2000, dtype="<u2").tobytes()
    (folder / "train.bin").write_bytes(easy)
    (folder / "val.bin").write_bytes(easy)
    foreign = {"data.source": str(folder), "data.tokenizer": "byte"}
    config = tiny_config(tmp_path, folder, **QUICK | {"training.steps": 8}, **foreign)
    assert train(config.model_copy(update={"stop_at_fraction": 0.5})) == 0
    run = RunDirectory(locate_run(config))
    before = run.read_status()["best"]
    (folder / "val.bin").write_bytes(hard)
    goes_on = {"resume.run": str(run.path), "resume.allow_change": ["data"]}
    changed = tiny_config(tmp_path, folder, **QUICK | {"training.steps": 8}, **foreign, **goes_on)
    assert train(changed) == 0
    after = run.read_status()["best"]
    assert after[0] > before[0] and after[1] > 4, "the lower loss was that of another text"
    assert (run.checkpoints.best_step() or 0) > 4
