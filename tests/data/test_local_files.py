"""Paths, folders, globs and links of `data.source`: followed once, and named in a note if left out."""

import os
from pathlib import Path

import pytest

from nanogpt.data.prepare import prepare
from nanogpt.errors import BadData
from tests.data.conftest import Make, text_of

TEXT = "A line.\nAnother, with é.\n" * 40


def test_links_are_followed_and_what_is_left_out_is_named(data: Make, tmp_path: Path) -> None:
    folder, outside = tmp_path / "source", tmp_path / "outside"
    for path in (folder / "real", outside / "deep"):
        path.mkdir(parents=True)
    (folder / "real" / "a.txt").write_text("inside\n" * 20)
    (outside / "deep" / "b.txt").write_text("outside\n" * 20)
    (tmp_path / "c.txt").write_text("a file\n" * 20)
    (folder / "books").symlink_to(outside)
    (folder / "c.txt").symlink_to(tmp_path / "c.txt")
    (folder / "again").symlink_to(folder / "real")
    (folder / "a_twice.txt").symlink_to(folder / "real" / "a.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "dead").symlink_to(tmp_path / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / ".hidden").write_text("hidden")
    os.mkfifo(folder / "pipe")
    dataset = prepare(data(source=str(folder), val_fraction=0.1))
    text = text_of(dataset, dataset.train) + text_of(dataset, dataset.val)
    assert [text.count(word) for word in ("inside", "outside", "a file", "hidden")] == [20, 20, 20, 0]
    assert set(dataset.notes) == {
        "left out, links that lead nowhere: dead, loop",
        "left out, not regular files: pipe",
        "left out, links to a folder that contains the source: up",
        "left out, links to files that are read already: a_twice.txt, again",
        "left out, hidden: .hidden",
        "read too, linked folders: books",
    }


def test_folders_that_a_glob_doesn_t_enter_are_named(data: Make, tmp_path: Path) -> None:
    (tmp_path / "s" / "sub.txt").mkdir(parents=True)
    (tmp_path / "s" / "sub.txt" / "b.txt").write_text(TEXT)
    (tmp_path / "s" / "a.txt").write_text(TEXT)
    assert (
        "folders that the glob names but doesn't enter (** does): sub.txt"
        in prepare(data(source=str(tmp_path / "s" / "*"))).notes[0]
    )
    whole = prepare(data(source=str(tmp_path / "s" / "**" / "*"), tokenizer="byte"))
    assert whole.notes == ("read though another file holds the same: sub.txt/b.txt",)
    assert whole.train.n_tokens + whole.val.n_tokens == 2 * len(TEXT.encode())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pipe", "is not a regular file"),
        ("dead", "is a link that leads nowhere"),
        ("none/*.txt", "no such file"),
        ("~nosuchuser/x", "no such user"),
        ("a\0b", "no such file"),
        ("closed", "Permission denied"),
    ],
)
def test_sources_that_are_no_files_are_named(
    data: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("dead").symlink_to("nowhere")
    Path("closed/in").mkdir(parents=True)
    Path("closed/in").chmod(0)
    if source == "closed" and os.access("closed/in", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(BadData, match=message):
        prepare(data(source=source))
