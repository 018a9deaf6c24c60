"""Read nanoGPT's pickles without running code in them, and write its meta.pkl. No other module opens pickles.

python -m nanogpt.interop.pickle_import path/to/meta.pkl   writes tokenizer.json beside nanoGPT's character vocabulary

nanoGPT's checkpoints are read for `init_from=path/ckpt.pt`.
"""

import io
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nanogpt import tokenizer as tokenizers
from nanogpt.errors import BadCheckpoint, BadData, BadEnvironment, LabError, one_line
from nanogpt.files import open_regular, read_bytes, write_atomic
from nanogpt.tokenizer import CharTokenizer

if TYPE_CHECKING:
    from torch import Tensor

CONTENT = (  # keys of a checkpoint: the network, and the state of its training
    "model",
    "model_args",
    *("optimizer", "scaler", "scheduler", "lr_scheduler", "iter_num", "step", "epoch", "best_val_loss", "config"),
    *("rng_state", "torch_rng_state", "cuda_rng_state", "run_id", "wandb_run_id"),
)
SIZE_LIMIT = 4 * 2**20  # bytes; a character vocabulary takes a few thousand


class PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, strings and numbers; refuses to import names, which could run code."""

    def find_class(self, module: str, name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any, /) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an outside object")


def convert_meta(path: Path) -> Path:
    """Convert nanoGPT's meta.pkl (`itos`: id -> character) to a tokenizer.json beside it. Raises BadData."""
    try:
        content = read_bytes(path, SIZE_LIMIT)
    except OSError as error:
        raise BadData(f"{one_line(path)}: {error.strerror}") from None
    try:
        value: object = PlainUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a corrupt pickle can raise anything
        raise BadData(f"{one_line(path)}: not a plain vocabulary: {one_line(error)}") from None
    itos = value.get("itos") if isinstance(value, dict) else None
    chars = [itos.get(i) for i in range(len(itos))] if isinstance(itos, dict) else []
    if not chars or not all(isinstance(char, str) and len(char) == 1 for char in chars):
        raise BadData(f"{one_line(path)}: not nanoGPT's character vocabulary")
    text = "".join(map(str, chars))
    if text != "".join(sorted(set(text))):
        raise BadData(f"{one_line(path)}: its characters are not in code point order, as nanoGPT writes them")
    target = path.with_name(tokenizers.FILE)
    write_atomic(target, tokenizers.to_json(CharTokenizer(text)))
    return target


def write_meta(path: Path, chars: str) -> None:
    """Write a character vocabulary in nanoGPT's format. Raises OSError."""
    numbered = dict(enumerate(chars))
    content = {"vocab_size": len(chars), "itos": numbered, "stoi": {char: i for i, char in numbered.items()}}
    path.write_bytes(pickle.dumps(content))


def check_saved_by_torch(path: Path) -> None:
    """Raise BadCheckpoint unless the file is a zip archive, as torch.save writes since torch 1.6."""
    try:
        with open_regular(path) as file:
            is_archive = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise BadCheckpoint(f"{one_line(path)}: {one_line(error.strerror)}") from None
    if not is_archive:
        allowed = "nanoGPT's ckpt.pt from torch 1.6 or newer, or a folder (for model.safetensors the one it is in)"
        raise BadCheckpoint(f"{one_line(path)}: not a checkpoint that can be read safely; allowed: {allowed}")


def read_checkpoint(path: Path) -> tuple[dict[str, Any], "dict[str, Tensor]"]:
    """Return (model_args, tensors by name) of nanoGPT's checkpoint. Raises BadCheckpoint, BadEnvironment.

    With `weights_only`, torch reads only tensors and plain values. Before 2.10 this protection could be bypassed
    (CVE-2026-24747), so an older torch is refused.
    """
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        raise BadEnvironment(f"{one_line(path)}: needs torch 2.10 or newer to be read safely, not {torch.__version__}")
    check_saved_by_torch(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a corrupt or hostile file can raise anything
        why = one_line((str(error).strip().splitlines() or [type(error).__name__])[0], 200)
        raise BadCheckpoint(f"{one_line(path)}: not a checkpoint that can be read safely: {why}") from None
    arguments = content.get("model_args") if isinstance(content, dict) else None
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(arguments, dict) or not isinstance(tensors, dict):
        raise BadCheckpoint(f"{one_line(path)}: not a checkpoint of nanoGPT: it has no model and model_args")
    if wrong := [name for name, tensor in tensors.items() if not isinstance(tensor, torch.Tensor)]:
        raise BadCheckpoint(f"{one_line(path)}: {one_line(wrong[0])} is not a tensor")
    if unknown := sorted(str(name) for name in content if name not in CONTENT):
        raise BadCheckpoint(f"{one_line(path)}: holds {one_line(unknown[0])}, which nanoGPT doesn't write")
    return {str(name): value for name, value in arguments.items()}, {str(name): t for name, t in tensors.items()}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m nanogpt.interop.pickle_import path/to/meta.pkl")
    try:
        print(convert_meta(Path(sys.argv[1])))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
