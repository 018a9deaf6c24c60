"""Sources that are wrong, change or go, and prepared data that is damaged or was never finished."""

import os
import signal
from pathlib import Path

import pytest

from nanogpt.data import corpora
from nanogpt.data.dataset import open_dataset
from nanogpt.data.prepare import prepare, prepare_if_small
from nanogpt.errors import BadData, BadEnvironment
from tests.data.conftest import Make


def test_killed_just_before_the_end_nothing_is_done_again(
    data: Make, monkeypatch: pytest.MonkeyPatch, corpus: Path
) -> None:
    from nanogpt.data import prepare as module

    class Killed(BaseException):
        pass

    def dying(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(module, "move_into_place", dying)
    with pytest.raises(Killed):
        prepare(data())
    monkeypatch.undo()
    monkeypatch.setattr(module, "encode_parts", dying)
    assert prepare(data()).train.n_tokens > 0
    assert not [path for path in Path(data().dir).iterdir() if path.is_dir() and path.name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "there is no text in it"),
        ("latin.txt", b"caf\xe9 " * 100, "not UTF-8 text"),
        ("rows.jsonl", b'{"text": "a"}\n{"te', "rows.jsonl, line 2: not JSON"),
        (
            "null.jsonl",
            b'{"text": "a"}\n{"text": null}\n',
            "null.jsonl, line 2: 'text' is null, not text; data.on_bad_row=skip",
        ),
    ],
)
def test_bad_sources_are_named_and_leave_nothing(
    data: Make, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    for _ in range(2):
        with pytest.raises(BadData, match=message):
            prepare(data(source=str(tmp_path / name)))
    assert not Path(data().dir).exists()


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_a_message(data: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"{i} " * 1000)
    monkeypatch.setattr(corpora, "PART_BYTES", 1)
    from nanogpt.data import prepare as module

    monkeypatch.setattr(module, "encode_part_in_worker", die)
    with pytest.raises(BadEnvironment, match=r"a tokenizing process was killed.*data.workers=1"):
        prepare(data(source=str(folder), tokenizer="byte", workers=2))


def test_touched_files_are_not_changed_files(data: Make, corpus: Path) -> None:
    before = prepare(data()).fingerprint
    os.utime(corpus, (1, 1))
    assert prepare(data()).fingerprint == before


def test_changed_files_are_another_data_set(data: Make, corpus: Path) -> None:
    """Prepared beside the old one, which is used again when the text is what it was."""
    before, text = prepare(data()), corpus.read_text()
    corpus.write_text(text + "more")
    after = prepare(data())
    assert after.folder != before.folder and after.fingerprint != before.fingerprint
    corpus.write_text(text)
    assert prepare(data()).folder == before.folder


def test_prepared_data_works_without_its_source(data: Make, corpus: Path) -> None:
    before = prepare(data()).fingerprint
    corpus.unlink()
    assert prepare_if_small(data()).fingerprint == before


@pytest.mark.parametrize("damage", ["flip", "cut", "meta", "tokenizer", "missing"])
def test_damage_is_named(data: Make, damage: str) -> None:
    folder = prepare(data()).folder
    shard = folder / "train_00000_000.bin"
    if damage == "flip":
        content = bytearray(shard.read_bytes())
        content[2000] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        os.truncate(shard, 5000)
    elif damage == "missing":
        shard.unlink()
    else:
        (folder / f"{damage}.json").write_text('{"kind": "byte"}')
    with pytest.raises(BadData) as error:
        open_dataset(data())
    expected = {
        "flip": "sha256 is not",
        "cut": "but its header says",
        "meta": "meta.json",
        "tokenizer": "is not the tokenizer",
    }
    assert expected.get(damage, shard.name) in str(error.value)
