"""The digest of a validation text: the same whatever tokenizer cut it, another for any other text."""

import hashlib
from pathlib import Path

import pytest

from nanogpt.data import text_digest
from nanogpt.data.prepare import prepare
from nanogpt.data.text_digest import compute_text_digest
from tests.tiny_config import tiny_config

TEXT = "It was – as they said – the best of times.\nIt was the worst of times.\n" * 120


def digests(folder: Path, source: str, **changes: object) -> dict[str, tuple[str, int]]:
    found: dict[str, tuple[str, int]] = {}
    for kind, size in (("char", None), ("byte", None), ("bpe", 265)):
        keys = {"data.tokenizer": kind, "data.vocab_size": size, "data.val_fraction": 0.3} | changes
        dataset = prepare(tiny_config(folder, Path(source), **keys).data)
        digest = compute_text_digest(dataset.val, dataset.tokenizer)
        assert digest is not None
        found[kind] = digest
    return found


def test_one_file(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text(TEXT)
    found = digests(tmp_path, str(tmp_path / "in.txt"))
    held_out = TEXT[int(len(TEXT) * 0.7) :].encode()
    assert set(found.values()) == {(hashlib.sha256(held_out).hexdigest(), len(held_out))}


def test_documents_with_and_without_a_newline_at_their_end(tmp_path: Path) -> None:
    """BPE ends documents with an id, characters and bytes with a newline."""
    for i in range(80):
        (tmp_path / f"{i}.txt").write_text(f"Document {i}. {TEXT[:60]}" + "\n" * (i % 3))
    found = digests(tmp_path / "out", str(tmp_path / "*.txt"))
    assert len(set(found.values())) == 1


def test_another_text_has_another_digest(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text(TEXT.replace("worst", "WORST"))
    a, b = (digests(tmp_path / name, str(tmp_path / f"{name}.txt"))["byte"] for name in ("a", "b"))
    assert a != b and a[1] == b[1]


def test_blocks_do_not_matter_and_what_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.txt").write_text(TEXT)
    before = digests(tmp_path, str(tmp_path / "in.txt"))
    monkeypatch.setattr(text_digest, "BLOCK", 7)
    assert digests(tmp_path, str(tmp_path / "in.txt")) == before
    monkeypatch.setattr(text_digest, "MOST_TOKENS", 10)
    dataset = prepare(tiny_config(tmp_path, tmp_path / "in.txt").data)
    assert compute_text_digest(dataset.val, dataset.tokenizer) is None
