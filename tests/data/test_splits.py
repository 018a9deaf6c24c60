"""Splits by the names of files, and end-of-text marks in a text that become the id."""

import json
from pathlib import Path

import numpy as np
import pytest

from nanogpt.data.local_files import LocalFiles
from nanogpt.data.prepare import prepare
from nanogpt.data.splits import divide_by_names, splits_in_name
from nanogpt.errors import BadData
from tests.data.conftest import Make, text_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("train-00000-of-00001-a09b74b3ef9c3b56.parquet", "train"),
        ("data/validation-00001-of-00002.parquet", "val"),
        ("TinyStoriesV2-GPT4-valid.txt", "val"),
        ("wiki.test.tokens", "test"),
        ("wiki.train.raw", "train"),
        ("Train.JSONL.gz", "train"),
        ("dev/a.txt", "val"),
        ("test/pos/0_9.txt", "test"),
        ("eval_3.csv", "test"),
        ("val2.txt", "val"),
        ("shakespeare-val-0001-of-0002.txt", "val"),
        ("device.txt", None),
        ("training_notes.txt", None),
        ("evaluation-of-x.txt", None),
        ("latest.txt", None),
        ("the_test_of_time.txt", None),
        ("testing/trainer.txt", None),
        ("values/valley.txt", None),
    ],
)
def test_words_that_name_a_split(name: str, split: str | None) -> None:
    assert splits_in_name(name) == ({split} if split else set())


def source(*names: str) -> LocalFiles:
    return LocalFiles(Path("s"), tuple(Path("s") / name for name in sorted(names)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train.txt", "notes.txt"), r"train: 1 \(train.txt\); not: 1 \(notes.txt\)\); choose files with a glob"),
        (("train.txt", "test.txt", "README.md"), r"test: 1 \(test.txt\); not: 1 \(README.md\)"),
        (("train/test.txt", "train/a.txt"), r"named for two splits: 1 \(train/test.txt\)"),
        (("val.txt", "test.txt"), "no file is named for training, but for val and test"),
    ],
)
def test_names_that_contradict_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadData, match=message):
        divide_by_names(source(*names))


def test_names_that_say_nothing_decide_nothing() -> None:
    for names in (("a.txt", "b.txt"), ("train-0.txt", "train-1.txt"), ("test.txt",)):
        assert divide_by_names(source(*names)).train == source(*names).files
    both = divide_by_names(source("test-0.txt", "test-1.txt"))
    assert len(both.train) == 2 and "named for the test split; they are used for training" in both.notes[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "validation", "test"):
        (tmp_path / "s" / split).mkdir(parents=True)
        for i in range(3):
            rows = "".join(json.dumps({"text": f"{split} {i} {j}"}) + "\n" for j in range(100))
            (tmp_path / "s" / split / f"{i}.jsonl").write_text(rows)
    return tmp_path / "s"


def lines(split: str) -> list[str]:
    return [f"{split} {i} {j}" for i in range(3) for j in range(100)]


def test_named_splits_are_used(data: Make, folder: Path) -> None:
    dataset = prepare(data(source=str(folder), tokenizer="byte", val_fraction=0.9))
    assert text_of(dataset, dataset.train).splitlines() == lines("train")
    assert text_of(dataset, dataset.val).splitlines() == lines("validation")
    meta = json.loads((dataset.folder / "meta.json").read_text())
    assert (
        meta["notes"]
        == list(dataset.notes)
        == [
            "left out, test files by their names: 3 (test/0.jsonl, test/1.jsonl, test/2.jsonl)",
            "validation files by their names, data.val_fraction isn't used: "
            "3 (validation/0.jsonl, validation/1.jsonl, validation/2.jsonl)",
        ]
    )


def test_test_files_are_left_out_where_none_are_for_validation(data: Make, folder: Path) -> None:
    (folder / "validation").rename(folder.parent / "elsewhere")
    dataset = prepare(data(source=str(folder), tokenizer="byte", val_fraction=0.2))
    train, val = (text_of(dataset, split).splitlines() for split in (dataset.train, dataset.val))
    assert sorted(train + val) == sorted(lines("train")) and 30 < len(val) < 90
    assert dataset.notes == ("left out, test files by their names: 3 (test/0.jsonl, test/1.jsonl, test/2.jsonl)",)


def test_val_fraction_divides_all_files_on_request(data: Make, folder: Path) -> None:
    dataset = prepare(data(source=str(folder), tokenizer="byte", split="val_fraction", val_fraction=0.2))
    text = text_of(dataset, dataset.train) + text_of(dataset, dataset.val)
    assert sorted(text.splitlines()) == sorted(lines("train") + lines("validation") + lines("test"))
    assert dataset.notes == ()


def test_one_text_for_each_split_is_kept_as_it_is(data: Make, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for split in ("train", "val"):
        (tmp_path / "s" / f"{split}.txt").write_text(f"The {split} text. " * 9)
    dataset = prepare(data(source=str(tmp_path / "s")))
    assert text_of(dataset, dataset.train) == "The train text. " * 9
    assert text_of(dataset, dataset.val) == "The val text. " * 9


def test_splits_of_a_hub_data_set_are_used(data: Make, folder: Path, tmp_path: Path) -> None:
    """The library takes a local folder for a data set of the hub and finds its splits by names."""
    datasets = pytest.importorskip("datasets")
    hub = tmp_path / "hub"
    hub.mkdir()
    for split in ("train", "validation", "test"):
        rows = list(lines(split))
        datasets.Dataset.from_dict({"text": rows}).to_parquet(str(hub / f"{split}-00000-of-00001.parquet"))
    dataset = prepare(data(corpus="hub", hub=str(hub), source=None, tokenizer="byte"))
    assert text_of(dataset, dataset.train).splitlines() == lines("train")
    assert text_of(dataset, dataset.val).splitlines() == lines("validation")
    assert dataset.notes == ("left out, splits of the hub: test",)


STORIES = "".join(f"Once there was a dog {i}.\n<|endoftext|>\n" for i in range(300))


def ids_of(dataset: object, name: str) -> list[int]:
    split = getattr(dataset, name)
    return np.concatenate([split.read(i, 0, n) for i, n in enumerate(split.shard_tokens)]).tolist()


@pytest.mark.usefixtures("gpt2_files")
def test_end_of_text_marks_become_the_id(data: Make, tmp_path: Path) -> None:
    """As tiktoken does when it is allowed to; the cut between the splits doesn't go through a mark."""
    import tiktoken

    gpt2 = tiktoken.get_encoding("gpt2")
    (tmp_path / "s.txt").write_text(STORIES)
    for fraction in (0.1, 0.1003, 0.1007, 0.101, 0.1013):
        dataset = prepare(data(source=str(tmp_path / "s.txt"), tokenizer="gpt2", val_fraction=fraction))
        val = text_of(dataset, dataset.val)
        decoded = gpt2.decode(ids_of(dataset, "train")), gpt2.decode(ids_of(dataset, "val"))
        assert "".join(decoded) == STORIES and val
        for text, name in zip(decoded, ("train", "val"), strict=True):
            assert ids_of(dataset, name) == gpt2.encode(text, allowed_special={"<|endoftext|>"})
    assert dataset.notes == ("<|endoftext|> in the text ends a document: found 300 times",)
    meta = json.loads((dataset.folder / "meta.json").read_text())
    assert sum(split["end_of_text"] for split in meta["splits"].values()) == 300


def test_bpe_learns_no_piece_of_a_mark(data: Make, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text(STORIES)
    marked = prepare(data(source=str(tmp_path / "s.txt"), tokenizer="bpe", vocab_size=300))
    assert not any(b"end" in token or b"<|" in token for token in marked.tokenizer.tokens)
    assert ids_of(marked, "train").count(marked.tokenizer.end_of_text or 0) > 200
    plain = prepare(data(source=str(tmp_path / "s.txt"), tokenizer="bpe", vocab_size=300, separator=""))
    assert any(b"endoftext" in token for token in plain.tokenizer.tokens)
    assert plain.tokenizer.end_of_text not in ids_of(plain, "train")
    assert plain.notes == ("<|endoftext|> stays plain text (data.separator): found 300 times",)


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_tokenizers_without_the_id_say_that_marks_stay(data: Make, tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "s.txt").write_text(STORIES)
    config = data(source=str(tmp_path / "s.txt"), tokenizer=tokenizer)
    dataset = prepare(config)
    assert text_of(dataset, dataset.train) + text_of(dataset, dataset.val) == STORIES
    assert "stays plain text" in dataset.notes[0] and "300 times; data.separator=" in dataset.notes[0]
    split = prepare(config.model_copy(update={"separator": r"\n<|endoftext|>"}))
    text = text_of(split, split.train) + text_of(split, split.val)
    assert text == STORIES.replace("\n<|endoftext|>", "\n")
    assert split.notes == ("\\n<|endoftext|> in the text ends a document: found 300 times",)


def test_a_document_that_ends_with_a_mark_is_ended_once(data: Make, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"row {i}<|endoftext|>"}) + "\n" for i in range(200))
    (tmp_path / "s.jsonl").write_text(rows)
    dataset = prepare(data(source=str(tmp_path / "s.jsonl"), tokenizer="bpe", vocab_size=262))
    ids = ids_of(dataset, "train") + ids_of(dataset, "val")
    assert ids.count(dataset.tokenizer.end_of_text or 0) == 200


def test_a_validation_split_of_one_token_is_refused(data: Make, corpus: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadData, match=r"val_fraction=1e-09: the val split of 1 documents has . tokens?, at least 2"):
        prepare(data(val_fraction=1e-9, tokenizer="byte"))
    with pytest.raises(BadData, match=r"the val split .* model.block_size=4000 needs 4,001 in one piece"):
        prepare(data(val_fraction=0.01), block_size=4000)
    with pytest.raises(BadData, match=r"the train split .* needs 2,000,000 in one piece"):
        prepare(data(val_fraction=0.01), block_size=1_000_000)
    assert sorted(tmp_path.rglob("*")) == before
