"""Forms of downloaded data that were once read wrongly and silently."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nanogpt.data.prepare import prepare
from nanogpt.data.splits import splits_in_name
from nanogpt.errors import BadData
from tests.data.conftest import Make

IDS = np.random.default_rng(0).integers(0, 50_000, 4000)


def rows(tag: str) -> bytes:
    return "".join(json.dumps({"text": f"{tag} {i}"}) + "\n" for i in range(60)).encode()


@pytest.mark.parametrize(("ending", "pack"), [("bz2", bz2.compress), ("xz", lzma.compress), ("gz", gzip.compress)])
def test_what_follows_packed_data_is_more_of_it_or_an_error(
    ending: str, pack: Callable[[bytes], bytes], data: Make, tmp_path: Path
) -> None:
    """Parallel packers write several streams; Python's readers of bzip2 and xz ignore anything else after them."""
    file = tmp_path / f"a.jsonl.{ending}"
    file.write_bytes(pack(rows("a")) + pack(rows("b")))
    assert "120 documents" in prepare(data(source=str(file), tokenizer="byte")).description
    file = tmp_path / f"b.jsonl.{ending}"
    file.write_bytes(pack(rows("a")) + b"garbage" + pack(rows("b")))
    with pytest.raises(BadData, match="can't be read as"):
        prepare(data(source=str(file), tokenizer="byte"))
    file = tmp_path / f"c.jsonl.{ending}"
    file.write_bytes(pack(rows("a")) + pack(rows("b"))[:-20])
    with pytest.raises(BadData, match="can't be read as"):
        prepare(data(source=str(file), tokenizer="byte"))


def test_one_text_in_two_files(data: Make, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(rows("a"))
    (folder / "a (1).jsonl").write_bytes(rows("a"))
    (folder / "b.jsonl").write_bytes(rows("b"))
    assert prepare(data(source=str(folder))).notes == ("read though another file holds the same: a.jsonl",)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(rows("b")))
    with pytest.raises(BadData, match=r"one file packed and unpacked: b.jsonl, b.jsonl.gz; remove one of them"):
        prepare(data(source=str(folder)))


def test_a_readme_among_texts_is_named(data: Make, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "README.md", "LICENSE"):
        (folder / name).write_text(f"{name} some text\n" * 20)
    assert prepare(data(source=str(folder))).notes == ("read as text like the others: LICENSE, README.md",)


@pytest.mark.parametrize(
    "names",
    [
        ("training.jsonl", "testing.jsonl"),
        ("TrainSet.jsonl", "TestSet.jsonl"),
        ("owt_train_shard_000.jsonl", "owt_test_shard_000.jsonl"),
        ("wiki-train-00000-of-00001-a09b74b3ef9c3b56.jsonl", "wiki-test-00000-of-00001-c09b74b3ef9c3b5f.jsonl"),
    ],
)
def test_more_names_of_splits(names: tuple[str, str], data: Make, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(rows(name))
    found = prepare(data(source=str(folder)))
    assert found.notes == (f"left out, test files by their names: 1 ({names[1]})",)
    assert "60 documents" in found.description


def test_words_inside_names_count_only_together(data: Make, tmp_path: Path) -> None:
    assert splits_in_name("the_test_of_time.txt") == set() and splits_in_name("the_test_of_time.txt", inside=True) == {
        "test"
    }
    folder = tmp_path / "s"
    folder.mkdir()
    for name in ("the_test_of_time.txt", "war_and_peace.txt"):
        (folder / name).write_text(f"{name} some text\n" * 20)
    assert "2 documents" in prepare(data(source=str(folder))).description


HEADER = np.zeros(256, "<i4")
HEADER[:3] = 20240520, 2, len(IDS)
NPY = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<u2', 'fortran_order': False, 'shape': (4000,), }".ljust(117) + b"\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IDS.astype("<u4").tobytes(), "the tokens have 32 or 64 bits"),
        (IDS.astype("<i8").tobytes(), "the tokens have 32 or 64 bits"),
        ((IDS + 2**16).astype("<u4").tobytes(), "the tokens have 32 or 64 bits"),
        (NPY + IDS.astype("<u2").tobytes(), r"is a NumPy array \(.npy\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12 \n", "is a Git LFS pointer"),
        (HEADER.tobytes() + IDS.astype("<u2").tobytes(), "llm.c header 20240520 of version 2; allowed: 1"),
    ],
)
@pytest.mark.usefixtures("gpt2_files")
def test_token_files_that_are_something_else(content: bytes, message: str, data: Make, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for name in ("train.bin", "val.bin"):
        (folder / name).write_bytes(content)
    with pytest.raises(BadData, match=message):
        prepare(data(source=str(folder), tokenizer="gpt2"))


@pytest.mark.usefixtures("gpt2_files")
def test_tokens_for_testing_are_not_for_validation(data: Make, tmp_path: Path) -> None:
    """`eval` has `val` in it."""
    folder = tmp_path / "s"
    folder.mkdir()
    for name in ("train.bin", "eval.bin"):
        (folder / name).write_bytes(IDS.astype("<u2").tobytes())
    with pytest.raises(BadData, match=r"eval.bin: is named for testing"):
        prepare(data(source=str(folder), tokenizer="gpt2"))


def test_a_row_that_says_its_text_twice(data: Make, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one", "text": "two"}\n' + rows("a"))
    with pytest.raises(BadData, match=r"line 1: .*has the key text twice"):
        prepare(data(source=str(tmp_path / "a.jsonl")))
