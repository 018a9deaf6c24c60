"""Token files: our own, those of others, and broken ones."""

import struct
from pathlib import Path

import numpy as np
import pytest

from nanogpt.data.shards import ShardWriter, dtype_for, open_shard
from nanogpt.errors import BadData


def write(path: Path, tokens: list[int], vocab_size: int = 300) -> Path:
    writer = ShardWriter(path, dtype_for(vocab_size))
    writer.append(np.array(tokens[:2], np.uint32))
    writer.append(np.array(tokens[2:], np.uint32))
    writer.close()
    return path


@pytest.mark.parametrize("vocab_size", [300, 65_536, 65_537, 200_000])
def test_round_trip(tmp_path: Path, vocab_size: int) -> None:
    tokens = [0, 1, 255, 256, vocab_size - 1]
    shard = open_shard(write(tmp_path / "a.bin", tokens, vocab_size))
    assert shard.n_tokens == 5
    assert shard.read(0, 5, vocab_size).tolist() == tokens
    assert shard.read(3, 2, vocab_size).tolist() == tokens[3:]


def test_the_format_is_llm_c_s(tmp_path: Path) -> None:
    """Header and tokens byte by byte, as llm.c's dataloader reads them."""
    content = write(tmp_path / "a.bin", [5, 6, 7]).read_bytes()
    assert struct.unpack("<3i", content[:12]) == (20240520, 1, 3)
    assert content[12:1024] == bytes(1012)
    assert content[1024:] == struct.pack("<3H", 5, 6, 7)
    content = write(tmp_path / "b.bin", [5, 6, 70_000], 100_000).read_bytes()
    assert struct.unpack("<3i", content[:12]) == (20240801, 7, 3)
    assert content[1024:] == struct.pack("<3I", 5, 6, 70_000)


def test_raw_files_of_nanogpt(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    np.arange(1000, dtype=np.uint16).tofile(path)
    shard = open_shard(path)
    assert shard.n_tokens == 1000 and shard.read(990, 10, 1000).tolist() == list(range(990, 1000))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"abc", "3 bytes, not a multiple of 2"),
        (struct.pack("<256i", 20240520, 1, 10, *[0] * 253) + bytes(18), "1042 bytes, but its header says 1044"),
        (struct.pack("<3i", 20240520, 1, 10), "12 bytes, but its header says 1044"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(content)
    with pytest.raises(BadData) as error:
        open_shard(path)
    assert message in str(error.value) and "bad.bin" in str(error.value)


def test_a_shard_cut_while_in_use_is_a_message_not_a_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", list(range(100)))
    shard = open_shard(path)
    shard.read(0, 100, 300)
    with path.open("r+b") as file:
        file.truncate(1024 + 2 * 50)
    with pytest.raises(BadData, match="ends at token 50 of 100"):
        shard.read(40, 20, 300)


def test_an_id_outside_the_vocabulary_is_placed(tmp_path: Path) -> None:
    shard = open_shard(write(tmp_path / "a.bin", [1, 2, 3, 299, 4]))
    with pytest.raises(BadData, match="id 299 at token 3, but the vocabulary has 299"):
        shard.read(1, 4, 299)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"gone\.bin"):
        open_shard(tmp_path / "gone.bin")
