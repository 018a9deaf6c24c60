"""Preparing data: right counts, whole or absent, resumable, the same over any number of processes."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nanogpt import tokenizer as tokenizers
from nanogpt.data import corpora
from nanogpt.data.dataset import Dataset, Split, find_dataset_folder
from nanogpt.data.prepare import prepare, prepare_if_small
from nanogpt.errors import BadData, BadEnvironment
from nanogpt.interop import pickle_import
from tests.data.conftest import Make

ROOT = Path(__file__).parents[2]


def text_of(dataset: Dataset, split: Split) -> str:
    ids = np.concatenate([split.read(i, 0, n) for i, n in enumerate(split.shard_tokens)])
    return tokenizers.decode(dataset.tokenizer, ids)


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "choice", [{"tokenizer": "char"}, {"tokenizer": "byte"}, {"tokenizer": "bpe", "vocab_size": 300}]
)
def test_one_text_is_split_at_its_end(data: Make, corpus: Path, choice: dict[str, object]) -> None:
    dataset = prepare(data(**choice))
    text = corpus.read_text()
    cut = int(len(text) * 0.9)
    assert text_of(dataset, dataset.train) == text[:cut]
    assert text_of(dataset, dataset.val) == text[cut:]


def test_meta_tells_what_was_prepared(data: Make, corpus: Path) -> None:
    dataset = prepare(data())
    meta = json.loads((dataset.folder / "meta.json").read_text())
    text = corpus.read_text()
    assert (meta["documents"], meta["characters"]) == (1, len(text))
    assert meta["vocab_size"] == len(set(text)) and meta["dtype"] == "uint16"
    for split in meta["splits"].values():
        assert split["tokens"] == split["bytes"] == sum(shard["tokens"] for shard in split["shards"])
        for shard in split["shards"]:
            assert hashlib.sha256((dataset.folder / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]


@pytest.mark.usefixtures("gpt2_files")
def test_shakespeare_counts_are_nanogpts(data: Make, shakespeare: Path) -> None:
    """1,003,854 and 111,540 characters, 301,966 and 36,059 tokens: the counts in nanoGPT's data/ READMEs."""
    char = prepare(data(corpus="shakespeare", source=str(shakespeare)))
    assert (char.train.n_tokens, char.val.n_tokens, char.vocab_size) == (1_003_854, 111_540, 65)
    bpe = prepare(data(corpus="shakespeare", source=str(shakespeare), tokenizer="gpt2"))
    assert (bpe.train.n_tokens, bpe.val.n_tokens) == (301_966, 36_059)


def test_many_documents_are_split_by_their_names_and_ended(data: Make, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(200):
        (folder / f"{i:03d}.txt").write_text(f"document number {i}")
    dataset = prepare(data(source=str(folder), val_fraction=0.2))
    train, val = (text_of(dataset, split).splitlines() for split in (dataset.train, dataset.val))
    assert sorted(train + val) == sorted(f"document number {i}" for i in range(200))
    assert 20 <= len(val) <= 60  # 40 expected
    dataset = prepare(data(source=str(folder), val_fraction=0.2, tokenizer="bpe", vocab_size=280))
    ids = dataset.train.read(0, 0, dataset.train.n_tokens)
    assert (ids == dataset.tokenizer.end_of_text).sum() == len(train)


def test_standard_library(data: Make) -> None:
    dataset = prepare(data(name="pystdlib", corpus="pystdlib", source=None))
    meta = json.loads((dataset.folder / "meta.json").read_text())
    assert meta["characters"] > 8_000_000 and meta["documents"] > 400
    assert 0.02 < dataset.val.n_tokens / meta["characters"] < 0.2
    assert text_of(dataset, dataset.val).isascii() and dataset.vocab_size < 128
    assert meta["source"]["python"].count(".") == 2 and "Python" in dataset.description


def test_a_python_without_sources_names_another_data_set(
    data: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(BadData, match=r"no library source.*data=text"):
        prepare(data(corpus="pystdlib", source=None))


def test_processes_and_parts_don_t_change_the_result(
    data: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:03d}.jsonl").write_text("".join(json.dumps({"text": f"row {i} {j}"}) + "\n" for j in range(50)))
    monkeypatch.setattr(corpora, "PART_BYTES", 1)
    config = data(corpus="hub", hub="none", source=str(folder), tokenizer="byte", val_fraction=0.2)
    alone = prepare(config.model_copy(update={"workers": 1}))
    together = prepare(config.model_copy(update={"workers": 2, "dir": str(tmp_path / "d2")}))
    assert files_of(alone.folder) == files_of(together.folder)
    assert alone.fingerprint == together.fingerprint


IN_SMALL_PARTS = """
import sys
from nanogpt.config import DataConfig
from nanogpt.data import corpora, prepare
corpora.PART_BYTES = 1
prepare.prepare(DataConfig.model_validate_json(open(sys.argv[1]).read()))
"""


def test_an_interrupted_preparation_continues(data: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 in the middle: nothing is there, and the same command ends with the files of an undisturbed one."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02d}.jsonl").write_text("".join(json.dumps({"text": "word " * 50}) + "\n" for _ in range(400)))
    same = {"name": "owt", "corpus": "hub", "hub": "none", "source": str(folder), "tokenizer": "byte"}
    config = data(**same, val_fraction=0.2, workers=1, dir=str(tmp_path / "data"))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-c", IN_SMALL_PARTS, str(tmp_path / "config.json")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while len(list(tmp_path.glob("data/.*.partial/part-*.json"))) < 5 and process.poll() is None:
            time.sleep(0.002)
        process.kill()
    done = list(tmp_path.glob("data/.*.partial/part-*.json"))
    assert process.returncode == -signal.SIGKILL and 5 <= len(done) < 30 and not list(tmp_path.glob("data/owt-*"))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("data/.*.partial/*_00000_*.bin")}
    subprocess.run(command, cwd=ROOT, check=True)
    assert not list(tmp_path.glob("data/.*.partial"))
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("data/owt-*/*_00000_*.bin")}
    monkeypatch.setattr(corpora, "PART_BYTES", 1)
    undisturbed = prepare(config.model_copy(update={"dir": str(tmp_path / "d2")}))
    resumed = next(tmp_path.glob("data/owt-*"))
    assert files_of(resumed) == files_of(undisturbed.folder)


def test_parquet_through_datasets(data: Make, tmp_path: Path) -> None:
    """The hub's own format and library, streamed from a local file."""
    datasets = pytest.importorskip("datasets")
    rows = [f"page {i}" for i in range(300)]
    datasets.Dataset.from_dict({"content": rows}).to_parquet(str(tmp_path / "a.parquet"))
    config = data(corpus="hub", hub="none", source=str(tmp_path / "*.parquet"), tokenizer="byte", val_fraction=0.2)
    with pytest.raises(BadData, match=r"data.text_column=text: .*a.parquet: no such column; its columns: content"):
        prepare(config)
    dataset = prepare(config.model_copy(update={"text_column": "content"}))
    lines = text_of(dataset, dataset.train).splitlines() + text_of(dataset, dataset.val).splitlines()
    assert sorted(lines) == sorted(rows)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_hub_data_set_is_streamed_file_by_file(data: Make, tmp_path: Path, workers: int) -> None:
    """`data.hub=` with the real library: it takes a local folder for a data set, its three files are three parts."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(3):
        rows = [f"file {i} row {j}" for j in range(100)]
        datasets.Dataset.from_dict({"text": rows}).to_parquet(str(folder / f"train-{i}.parquet"))
    config = data(corpus="hub", hub=str(folder), source=None, tokenizer="byte", val_fraction=0.2, workers=workers)
    dataset = prepare(config)
    lines = text_of(dataset, dataset.train).splitlines() + text_of(dataset, dataset.val).splitlines()
    assert sorted(lines) == sorted(f"file {i} row {j}" for i in range(3) for j in range(100))
    assert len(dataset.train.shards) == 3


def test_an_unreachable_hub_is_a_message(data: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # a closed port
    with pytest.raises(BadEnvironment, match=r"some/set: .*refused"):
        prepare(data(corpus="hub", hub="some/set", source=None))


def test_large_data_is_not_prepared_by_train(data: Make) -> None:
    with pytest.raises(BadData, match=r"not prepared; run: nanogpt prepare data=openwebtext"):
        prepare_if_small(data(name="openwebtext", corpus="hub", hub="some/set", source=None))


def test_choices_have_folders_of_their_own(data: Make) -> None:
    folders = {
        find_dataset_folder(data(**change))
        for change in ({}, {"tokenizer": "byte"}, {"val_fraction": 0.2}, {"tokenizer": "bpe", "vocab_size": 300})
    }
    assert len(folders) == 4
    assert (
        find_dataset_folder(data(order="random"))
        == find_dataset_folder(data())
        == find_dataset_folder(data(workers=4, verify="full"))
    )


def test_token_folders_of_others_are_read_in_place(data: Make, tmp_path: Path) -> None:
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    np.arange(200, dtype=np.uint16).tofile(folder / "train.bin")
    np.arange(50, dtype=np.uint16).tofile(folder / "val.bin")
    dataset = prepare_if_small(data(source=str(folder), tokenizer="byte"))
    assert dataset.train.read(0, 100, 5).tolist() == [100, 101, 102, 103, 104]
    with pytest.raises(BadData, match=r"token files without a tokenizer.json"):
        prepare_if_small(data(source=str(folder)))


class Canary:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch canary",)


def test_nanogpts_vocabulary_is_converted_without_running_it(
    data: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    np.array([0, 1, 2, 1] * 20, np.uint16).tofile(folder / "train.bin")
    np.array([0, 1, 2, 1] * 20, np.uint16).tofile(folder / "val.bin")
    meta = {"vocab_size": 3, "itos": {0: "a", 1: "b", 2: "c"}, "stoi": {"a": 0, "b": 1, "c": 2}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    with pytest.raises(BadData, match=r"python -m nanogpt.interop.pickle_import .*meta.pkl"):
        prepare_if_small(data(source=str(folder)))
    pickle_import.convert_meta(folder / "meta.pkl")
    dataset = prepare_if_small(data(source=str(folder)))
    assert text_of(dataset, dataset.val).startswith("abcb")
    for evil in (pickle.dumps(Canary()), pickle.dumps({"itos": Canary()}), b"cos\nsystem\n(S'touch canary'\ntR."):
        (folder / "meta.pkl").write_bytes(evil)
        with pytest.raises(BadData, match="not a plain vocabulary"):
            pickle_import.convert_meta(folder / "meta.pkl")
    assert not (tmp_path / "canary").exists() and not (folder / "canary").exists()
