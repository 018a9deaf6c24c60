"""Our safetensors files are read by the safetensors library, whole, and their digest is the file's."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nanogpt.safetensors_writer import DTYPES, write_tensors

TENSORS = {
    "odd": torch.arange(7, dtype=torch.uint8),
    "matrix": torch.randn(3, 5),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    'name with ü and "': torch.ones(2, 2, dtype=torch.bfloat16),
}


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    entry = write_tensors(tmp_path / "a.safetensors", TENSORS)
    content = (tmp_path / "a.safetensors").read_bytes()
    assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"x": torch.arange(6).reshape(2, 3).to(dtype)}
    write_tensors(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs")
    with safe_open(tmp_path / "ours", "pt") as ours, safe_open(tmp_path / "theirs", "pt") as theirs:
        assert ours.get_slice("x").get_dtype() == theirs.get_slice("x").get_dtype()
        assert torch.equal(ours.get_tensor("x"), theirs.get_tensor("x"))


def test_a_large_tensor_is_written_in_pieces(tmp_path: Path) -> None:
    tensors = {"big": torch.arange(5_000_000, dtype=torch.int32), "after": torch.ones(1)}
    entry = write_tensors(tmp_path / "a", tensors)
    assert torch.equal(load_file(tmp_path / "a")["big"], tensors["big"])
    assert entry["sha256"] == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
