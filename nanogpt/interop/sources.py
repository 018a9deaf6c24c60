"""Sources of weights that a run or a command starts from: OpenAI, Hugging Face folders, nanoGPT's file, runs.

A source names its network before it reads the weights, so that a config is complete before anything starts; torch is
imported only to read tensors. Only safetensors and, with `weights_only`, nanoGPT's .pt are read.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nanogpt import schema
from nanogpt import tokenizer as tokenizers
from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.errors import BadCheckpoint, BadInput, hint, one_line
from nanogpt.files import read_json
from nanogpt.hf_hub import download_from_hub
from nanogpt.interop.architecture import (
    DECIDED_KEYS,
    GPT2_SIZES,
    Values,
    check_known_keys,
    nanogpt_values,
    openai_values,
)
from nanogpt.interop.hf_config import from_hf_config
from nanogpt.interop.hf_tokenizer import read_tokenizer
from nanogpt.interop.layout import StoredTensor, expected_layout, match_tensors
from nanogpt.interop.safetensors_files import INDEX, WEIGHTS, list_unread, read_header, read_headers, read_tensors
from nanogpt.tokenizer import GPT2Tokenizer, Tokenizer

if TYPE_CHECKING:
    from nanogpt.interop.names import Tensors

HUB = {name: "openai-community/" + name.replace("_", "-") for name in GPT2_SIZES}
CONFIG = "config.json"


class WeightSource(Protocol):
    """Source of trained weights."""

    @property
    def label(self) -> str:
        """Short name, for run names and tables."""
        ...

    def values(self) -> Values:
        """Return the keys of a ModelConfig that these weights decide. Raises BadCheckpoint."""
        ...

    def tensors(self) -> "Tensors":
        """Return the weights under our names, on the CPU. Raises BadCheckpoint, BadEnvironment."""
        ...

    def tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer that the weights were trained with, or None if it isn't known."""
        ...


@dataclass(frozen=True)
class OpenAIWeights:
    """One of the four GPT-2 models, from the Hugging Face hub or its cache."""

    label: str

    def values(self) -> Values:
        return openai_values(self.label)

    def tensors(self) -> "Tensors":
        from nanogpt.interop.names import convert_tensors

        file, values = download_from_hub(HUB[self.label], WEIGHTS), self.values()
        names = match_tensors(read_header(file), expected_layout(values, input_first=True), self.label)
        return convert_tensors(read_tensors(file), names, values, one_line(file), input_first=True)

    def tokenizer(self) -> Tokenizer | None:
        return GPT2Tokenizer()


@dataclass(frozen=True)
class HFFolder:
    """Folder in the format of transformers' save_pretrained, which exports have too."""

    path: Path

    @property
    def label(self) -> str:
        return self.path.resolve().name

    def values(self) -> Values:
        return self.read_checked()[0]

    def read_checked(self) -> tuple[Values, dict[str, StoredTensor], dict[str, str]]:
        """Return values, stored tensors, and plain name -> stored name, after checking config.json against the file."""
        where = f"{one_line(self.path)}/{CONFIG}"
        values, stored = from_hf_config(read_json(self.path / CONFIG), where), read_headers(self.path)
        return values, stored, match_tensors(stored, expected_layout(values, input_first=True), where)

    def tensors(self) -> "Tensors":
        from nanogpt.interop.names import convert_tensors

        values, stored, names = self.read_checked()
        theirs: Tensors = {}
        for file in sorted({tensor.file for tensor in stored.values()}):
            theirs |= read_tensors(self.path / file)
        return convert_tensors(theirs, names, values, one_line(self.path), input_first=True)

    def tokenizer(self) -> Tokenizer | None:
        return read_tokenizer(self.path)

    def describe_unread(self) -> str:
        """Return a note on other files that may hold weights and aren't read, or ""."""
        read = sorted({tensor.file for tensor in self.read_checked()[1].values()})
        other = list_unread(self.path, read)
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        return f"{read[0]} is read, not {', '.join(map(one_line, other[:3]))}{more}" if other else ""


@dataclass(frozen=True)
class NanoGPTCheckpoint:
    """Checkpoint of nanoGPT's train.py."""

    path: Path

    @property
    def label(self) -> str:
        return self.path.stem

    def values(self) -> Values:
        return self.read_checked()[0]

    def read_checked(self) -> "tuple[Values, Tensors, dict[str, str]]":
        """Return values, tensors, and plain name -> stored name, after checking model_args against the tensors."""
        from nanogpt.interop.pickle_import import read_checkpoint

        arguments, tensors = read_checkpoint(self.path)
        where = one_line(self.path)
        values = nanogpt_values(arguments, where)
        stored = {
            name: StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), self.path.name)
            for name, tensor in tensors.items()
        }
        names = match_tensors(stored, expected_layout(values, input_first=False), f"{where}: model_args")
        return values, tensors, names

    def tensors(self) -> "Tensors":
        from nanogpt.interop.names import convert_tensors

        values, tensors, names = self.read_checked()
        return convert_tensors(tensors, names, values, one_line(self.path), input_first=False)

    def tokenizer(self) -> Tokenizer | None:
        folder = self.path.parent
        if (folder / tokenizers.FILE).exists():
            return read_tokenizer(folder)
        if why := tokenizers.explain_meta_pickle(folder):
            raise BadInput(why)
        return GPT2Tokenizer() if self.values()["vocab_size"] in (50_257, 50_304) else None


@dataclass(frozen=True)
class RunWeights:
    """Run directory of this project, at its best checkpoint."""

    path: Path

    @property
    def label(self) -> str:
        return self.read_model().name

    def read_model(self) -> ModelConfig:
        """Return the model section of the run's config."""
        return schema.read_config(TrainConfig, self.path / CONFIG).model

    def values(self) -> Values:
        model = self.read_model().with_vocab(len(tokenizers.load(self.path).tokens))
        return {key: getattr(model, key) for key in DECIDED_KEYS} | {"conv": [*model.conv]}

    def tensors(self) -> "Tensors":
        from nanogpt.interop.names import cut_padding
        from nanogpt.run_directory import RunDirectory

        tensors, vocab = RunDirectory(self.path).checkpoints.load("best").model, self.values()["vocab_size"]
        return cut_padding(tensors, ModelConfig(vocab_size=vocab))

    def tokenizer(self) -> Tokenizer | None:
        return tokenizers.load(self.path)


def find_source(init_from: str) -> WeightSource:
    """Return the source for a name or a path. Raises BadInput with what is allowed and the nearest name."""
    if init_from in GPT2_SIZES:
        return OpenAIWeights(init_from)
    path = Path(init_from)  # os.path's functions return False for a name that is too long; pathlib's raise
    if os.path.isfile(path):
        return NanoGPTCheckpoint(path)
    if os.path.exists(path / CONFIG):
        return RunWeights(path) if "training" in read_json(path / CONFIG) else HFFolder(path)
    if os.path.isdir(path):
        raise BadCheckpoint(f"init_from={one_line(init_from)}: a folder without {CONFIG}")
    names = ["scratch", *GPT2_SIZES]
    if init_from == "resume":
        raise BadInput("init_from=resume: repeat the run's command to continue it; resume.run=FOLDER continues another")
    raise BadInput(
        f"init_from={one_line(init_from)}: no such weights; allowed: {', '.join(names)}, a Hugging Face folder, "
        f"nanoGPT's ckpt.pt, a run directory{hint(init_from, names)}"
    )


def fill_from_weights(init_from: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model section of a config with every null replaced by the weights' value.

    Raises BadInput for a value that contradicts the weights. `block_size` may be smaller with learned positions (the
    embedding is cut, as by nanoGPT's crop_block_size) and any number with rotary ones; `dropout` is free.
    """
    check_known_keys(ModelConfig, f"init_from={one_line(init_from)}")
    label, values = read_label_and_values(init_from, newest_mtime(init_from))
    theirs = values | {"n_kv_head": values["n_kv_head"] or values["n_head"]}
    ours = {**model}
    for key, value in theirs.items():
        given = ours.get(key)
        if given is None:
            ours[key] = values[key]
        elif key == "block_size" and (given <= value or values["position"] == "rotary"):
            continue
        elif given != value:
            allowed = f"{str(value).lower()}, or leave it to the weights with model=pretrained"
            allowed = f"at most {value}" if key == "block_size" else allowed
            shown = str(given).lower() if isinstance(given, bool) else given
            raise BadInput(
                f"model.{key}={one_line(shown)}: doesn't fit init_from={one_line(init_from)}; allowed: {allowed}"
            )
    if ours.get("dropout") is None:
        ours["dropout"] = 0.0
    if ours.get("name") == "pretrained":
        name = "".join(c if c.isalnum() or c in "._-" else "_" for c in label)
        ours["name"] = name.lstrip("._-")[:64] or "pretrained"
    return ours


@cache
def read_label_and_values(init_from: str, _: int) -> tuple[str, Values]:
    """Return label and values; cached for all points of a sweep until a file changes."""
    source = find_source(init_from)
    values = source.values()
    note = source.describe_unread() if isinstance(source, HFFolder) else ""
    if isinstance(source, OpenAIWeights) and os.path.exists(init_from):
        note = f"OpenAI's weights are read, not this folder; for the folder give init_from=./{init_from}"
    if note and os.environ.get("RANK", "0") == "0":
        print(f"note: init_from={one_line(init_from)}: {note}", file=sys.stderr)
    return source.label, values


def newest_mtime(init_from: str) -> int:
    """Return the time of the newest of the files that label and values depend on, in ns."""
    path = Path(init_from)
    paths = (file for file in (path, *(path / name for name in (CONFIG, WEIGHTS, INDEX))) if os.path.exists(file))
    return max((file.stat().st_mtime_ns for file in paths), default=0)
