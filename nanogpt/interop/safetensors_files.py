"""Read the safetensors files of a Hugging Face folder: headers and tensors.

A folder with two sources of the same weights, or with an adapter, is refused instead of choosing one of them.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.files import check_regular, read_json
from nanogpt.interop.layout import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".gguf", ".onnx", ".npz")
TRAINER_FILES = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state)[^/]*\.")
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Return name -> shape, type and file of all tensors. Raises BadCheckpoint if files contradict each other."""
    names = sorted(path.name for path in folder.iterdir())
    if adapters := [name for name in names if name in ADAPTERS]:
        why = "an adapter, which isn't applied; merge it first (peft: merge_and_unload)"
        raise BadCheckpoint(f"{one_line(folder)}/{adapters[0]}: {why}")
    if WEIGHTS in names and INDEX in names:
        raise BadCheckpoint(f"{one_line(folder)}: has {WEIGHTS} and {INDEX}; remove one of them")
    mapped = {} if WEIGHTS in names else read_index(folder)
    files = {WEIGHTS} if WEIGHTS in names else set(mapped.values())
    if other := [name for name in names if SHARD.fullmatch(name) and name not in files]:
        index = INDEX if mapped else "any index"
        raise BadCheckpoint(f"{one_line(folder)}/{other[0]}: isn't named by {index}; remove it")
    stored: dict[str, StoredTensor] = {}
    for file in sorted(files):
        for name, tensor in read_header(folder / file).items():
            if name in stored:
                raise BadCheckpoint(f"{one_line(folder)}: {one_line(name)} is in {stored[name].file} and in {file}")
            if mapped and mapped.get(name) != file:
                says = one_line(mapped[name]) if name in mapped else "nothing about it"
                raise BadCheckpoint(f"{one_line(folder)}/{file}: holds {one_line(name)}; {INDEX} says {says}")
            stored[name] = tensor
    if missing := sorted(mapped.keys() - stored.keys()):
        where = f"{one_line(folder)}/{mapped[missing[0]]}"
        raise BadCheckpoint(f"{where}: lacks {one_line(missing[0])}, which {INDEX} names")
    return stored


def list_unread(folder: Path, read: list[str]) -> list[str]:
    """Return the other files of a folder that may hold weights, except optimizer and trainer state."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in WEIGHT_ENDINGS and path.name not in read and not TRAINER_FILES.match(path.name)
    )


def read_index(folder: Path) -> dict[str, str]:
    """Return tensor name -> file, from the index. Raises BadCheckpoint."""
    path = folder / INDEX
    if not path.is_file():
        why = f"has no {WEIGHTS}, and pickles (pytorch_model.bin) aren't read; save it again with transformers"
        raise BadCheckpoint(f"{one_line(folder)}: {why}")
    found: Any = read_json(path).get("weight_map")
    mapped = {str(name): str(file) for name, file in found.items()} if isinstance(found, dict) else {}
    if not mapped or any(Path(name).name != name for name in mapped.values()):
        raise BadCheckpoint(f"{one_line(path)}: not an index of files in this folder")
    if absent := sorted(name for name in set(mapped.values()) if not (folder / name).is_file()):
        raise BadCheckpoint(f"{one_line(path)}: names {one_line(absent[0])}, which doesn't exist")
    return mapped


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return shape and type of a safetensors file's tensors, without reading them. Raises BadCheckpoint."""
    from safetensors import safe_open

    try:
        check_regular(path)
        stored: dict[str, StoredTensor] = {}
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                stored[str(name)] = StoredTensor(tuple(part.get_shape()), str(part.get_dtype()), path.name)
        return stored
    except Exception as error:  # safetensors raises its own
        raise BadCheckpoint(f"{one_line(path)}: can't be read: {one_line(error, 200)}") from None


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Return all tensors of a safetensors file as fp32. Raises BadCheckpoint."""
    from safetensors.torch import load_file

    try:
        check_regular(path)
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except Exception as error:  # safetensors raises its own
        raise BadCheckpoint(f"{one_line(path)}: can't be read: {one_line(error, 200)}") from None
