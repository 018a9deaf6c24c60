"""A writer of safetensors files that needs no copy in memory and hashes while writing.

The format (https://github.com/huggingface/safetensors): 8 bytes of header length, a JSON header with dtype, shape and
offsets of every tensor, then the bytes of the tensors, little-endian. The safetensors library's own writer copies every
tensor into Python bytes first, which doubles the memory, and the file would have to be read again for its digest.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from io import RawIOBase
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
BLOCK = 1 << 23  # bytes hashed and written at a time; small enough for a CPU cache


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int | str]:
    """Write contiguous CPU tensors. Returns {"bytes": size, "sha256": digest} of the file. Raises OSError.

    The space is reserved first, so a full disk is an error before anything is written.
    """
    head = build_header(tensors)
    size = len(head) + sum(tensor.nbytes for tensor in tensors.values())
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        reserve(file.fileno(), size)
        for block in [memoryview(head), *tensor_blocks(tensors)]:
            digest.update(block)
            write_all(file, block)
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def write_all(file: RawIOBase, block: memoryview) -> None:
    """Write a whole block; one write to a raw file may write less."""
    while block:
        block = block[file.write(block) or 0 :]


def reserve(descriptor: int, size: int) -> None:
    """Reserve the space of a file if the file system supports it. Raises OSError if there is too little."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:
        pass
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def build_header(tensors: Mapping[str, Tensor]) -> bytes:
    """Return length and JSON header, padded so that the tensors begin at a multiple of 8."""
    entries: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_blocks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """Yield the bytes of all tensors in blocks."""
    for tensor in tensors.values():
        data = memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
        for start in range(0, len(data), BLOCK):
            yield data[start : start + BLOCK]
