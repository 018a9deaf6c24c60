"""Where the weights are that a run or a command starts from: OpenAI's, a Hugging Face folder, nanoGPT's file, a run.

Each source tells the network its weights are for before it reads them, so that a config is whole before anything
starts; torch is only imported to read tensors. Only safetensors and, with `weights_only`, nanoGPT's .pt are read.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nanogpt import schema
from nanogpt import tokenizer as tokenizers
from nanogpt.config import TrainConfig
from nanogpt.errors import BadCheckpoint, BadEnvironment, BadInput, escaped, hint
from nanogpt.files import check_regular, read_json
from nanogpt.hub import refuse_silence
from nanogpt.interop.architecture import GPT2_SIZES, PLAIN, SIZES, Values, from_hf, gpt2_values, openai_values
from nanogpt.interop.hf_tokenizer import read_tokenizer
from nanogpt.tokenizer import GPT2Tokenizer, Tokenizer

if TYPE_CHECKING:
    from nanogpt.interop.names import Tensors

HUB = {name: "openai-community/" + name.replace("_", "-") for name in GPT2_SIZES}
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Source(Protocol):
    """Weights of somewhere."""

    @property
    def label(self) -> str:
        """A short name, for run names and tables."""
        ...

    def values(self) -> Values:
        """The keys of a ModelConfig that these weights decide. Raises BadCheckpoint."""
        ...

    def tensors(self) -> "Tensors":
        """The weights under our names, on the CPU. Raises BadCheckpoint, BadEnvironment."""
        ...

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer they were trained with, where it can be told."""
        ...


@dataclass(frozen=True)
class OpenAI:
    """One of the four GPT-2 models, from the Hugging Face hub or its cache."""

    label: str

    def values(self) -> Values:
        return openai_values(self.label)

    def tensors(self) -> "Tensors":
        from nanogpt.interop.names import from_gpt2

        return from_gpt2(read_tensors(downloaded(HUB[self.label], WEIGHTS)))

    def tokenizer(self) -> Tokenizer | None:
        return GPT2Tokenizer()


@dataclass(frozen=True)
class Folder:
    """What transformers' save_pretrained, or our export, writes."""

    path: Path

    @property
    def label(self) -> str:
        return self.path.resolve().name

    def values(self) -> Values:
        return from_hf(read_json(self.path / CONFIG), f"{escaped(self.path)}/{CONFIG}")

    def tensors(self) -> "Tensors":
        from nanogpt.interop.names import from_gpt2, from_llama

        theirs: Tensors = {}
        for file in self.files():
            theirs |= read_tensors(file)
        kind = read_json(self.path / CONFIG).get("model_type")
        return from_gpt2(theirs) if kind == "gpt2" else from_llama(theirs)

    def files(self) -> list[Path]:
        """The one file, or those of the index."""
        if (self.path / WEIGHTS).exists():
            return [self.path / WEIGHTS]
        if not (self.path / f"{WEIGHTS}.index.json").exists():
            why = f"has no {WEIGHTS}, and pickles (pytorch_model.bin) aren't read; save it again with transformers"
            raise BadCheckpoint(f"{escaped(self.path)}: {why}")
        names = read_json(self.path / f"{WEIGHTS}.index.json").get("weight_map")
        files = sorted({str(name) for name in names.values()} if isinstance(names, dict) else ())
        if not files or any(Path(name).name != name for name in files):
            raise BadCheckpoint(f"{escaped(self.path)}/{WEIGHTS}.index.json: not an index of files in this folder")
        return [self.path / name for name in files]

    def tokenizer(self) -> Tokenizer | None:
        return read_tokenizer(self.path)


@dataclass(frozen=True)
class NanoGPT:
    """A checkpoint of nanoGPT's train.py."""

    path: Path

    @property
    def label(self) -> str:
        return self.path.stem

    def values(self) -> Values:
        from nanogpt.foreign import read_checkpoint

        arguments, _ = read_checkpoint(self.path)
        names = (*SIZES, "bias")
        if lacking := [name for name in names if name not in arguments]:
            raise BadCheckpoint(f"{escaped(self.path)}: model_args lacks {', '.join(lacking)}")
        return gpt2_values(*(arguments[name] for name in names), activation="gelu")

    def tensors(self) -> "Tensors":
        from nanogpt.foreign import read_checkpoint
        from nanogpt.interop.names import MASKS

        _, tensors = read_checkpoint(self.path)
        plain = {name.removeprefix("_orig_mod."): tensor for name, tensor in tensors.items()}  # torch.compile's prefix
        return {name: t for name, t in plain.items() if name != "lm_head.weight" and not name.endswith(MASKS)}

    def tokenizer(self) -> Tokenizer | None:
        folder = self.path.parent
        if (folder / tokenizers.FILE).exists():
            return read_tokenizer(folder)
        if (folder / "meta.pkl").exists():
            raise BadInput(
                f"{escaped(folder)}/meta.pkl: a pickle can run code, so it isn't read; "
                f"convert it safely: python -m nanogpt.foreign {escaped(folder)}/meta.pkl"
            )
        return GPT2Tokenizer() if self.values()["vocab_size"] in (50_257, 50_304) else None


@dataclass(frozen=True)
class Run:
    """One of our own run directories, at its best checkpoint."""

    path: Path

    @property
    def label(self) -> str:
        return schema.read(TrainConfig, self.path / CONFIG).model.name

    def values(self) -> Values:
        model = schema.read(TrainConfig, self.path / CONFIG).model
        model = model.with_vocab(len(tokenizers.load(self.path).tokens))
        return {key: getattr(model, key) for key in [*PLAIN, *SIZES, "bias", "activation"]} | {"conv": [*model.conv]}

    def tensors(self) -> "Tensors":
        from nanogpt.run_directory import RunDirectory

        return RunDirectory(self.path).checkpoints.choose("best").model

    def tokenizer(self) -> Tokenizer | None:
        return tokenizers.load(self.path)


def find_source(init_from: str) -> Source:
    """The weights that a name or a path means. Raises BadInput with what is allowed and the nearest name."""
    if init_from in GPT2_SIZES:
        return OpenAI(init_from)
    path = Path(init_from)  # os.path's questions say no where pathlib's raise: of names that are too long
    if os.path.isfile(path):
        return NanoGPT(path)
    if os.path.exists(path / CONFIG):
        return Run(path) if "training" in read_json(path / CONFIG) else Folder(path)
    if os.path.isdir(path):
        raise BadCheckpoint(f"init_from={escaped(init_from)}: a folder without {CONFIG}")
    names = ["scratch", *GPT2_SIZES]
    if init_from == "resume":
        raise BadInput("init_from=resume: the same command continues a run by itself; resume.run=FOLDER another one")
    raise BadInput(
        f"init_from={escaped(init_from)}: no such weights; allowed: {', '.join(names)}, a Hugging Face folder, "
        f"nanoGPT's ckpt.pt, a run directory{hint(init_from, names)}"
    )


def adopted(init_from: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """The model section of a config with what the weights decide in place of every null.

    Raises BadInput for a value that contradicts the weights. `block_size` may be smaller where positions are learned
    (the embedding is cut, as by nanoGPT's crop_block_size) and anything where they are rotary; `dropout` is free.
    """
    label, values = look(init_from, stamp(init_from))
    theirs = values | {"n_kv_head": values["n_kv_head"] or values["n_head"]}
    ours = {**model}
    for key, value in theirs.items():
        given = ours.get(key)
        if given is None:
            ours[key] = values[key]
        elif key == "block_size" and (given <= value or values["position"] == "rotary"):
            continue
        elif given != value:
            why = (
                f"at most {value}"
                if key == "block_size"
                else f"{str(value).lower()}, or leave it to the weights with model=pretrained"
            )
            shown = str(given).lower() if isinstance(given, bool) else given
            raise BadInput(f"model.{key}={escaped(shown)}: doesn't fit init_from={escaped(init_from)}; allowed: {why}")
    if ours.get("dropout") is None:
        ours["dropout"] = 0.0
    if ours.get("name") == "pretrained":
        ours["name"] = (
            "".join(c if c.isalnum() or c in "._-" else "_" for c in label).lstrip("._-")[:64] or "pretrained"
        )
    return ours


@cache
def look(init_from: str, _: int) -> tuple[str, Values]:
    """Label and values, read once for all points of a sweep while the files stay as they are."""
    source = find_source(init_from)
    return source.label, source.values()


def stamp(init_from: str) -> int:
    path = Path(init_from)
    paths = (file for file in (path, path / CONFIG) if os.path.exists(file))
    return max((file.stat().st_mtime_ns for file in paths), default=0)


def downloaded(repository: str, name: str) -> Path:
    """A file of the hub, from the cache where it is there. Raises BadEnvironment within seconds when offline."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        refuse_silence()
        return Path(hf_hub_download(repository, name))
    except (OSError, HfHubHTTPError) as error:
        why = escaped(getattr(error, "reason", None) or error, 120)
        raise BadEnvironment(
            f"{repository}/{name}: not in the cache of the Hugging Face hub, and it can't be downloaded ({why}); "
            f"have the folder yourself and name it: init_from=path/to/{repository.rpartition('/')[2]}"
        ) from None


def read_tensors(path: Path) -> "Tensors":
    """All tensors of a safetensors file, as fp32. Raises BadCheckpoint."""
    from safetensors.torch import load_file

    try:
        check_regular(path)
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except Exception as error:  # safetensors raises its own
        raise BadCheckpoint(f"{escaped(path)}: can't be read: {escaped(error, 200)}") from None
