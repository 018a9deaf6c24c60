"""Where the weights are that a run or a command starts from: OpenAI's, a Hugging Face folder, nanoGPT's file, a run.

Each source tells the network its weights are for before it reads them, so that a config is whole before anything
starts; torch is only imported to read tensors. Only safetensors and, with `weights_only`, nanoGPT's .pt are read.
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
from nanogpt.errors import BadCheckpoint, BadEnvironment, BadInput, hint, one_line
from nanogpt.files import read_json
from nanogpt.hf_hub import check_hub_reachable
from nanogpt.interop.architecture import (
    GPT2_DEFAULTS,
    GPT2_SIZES,
    SIZES,
    Values,
    check_known_keys,
    gpt2_values,
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
class OpenAIWeights:
    """One of the four GPT-2 models, from the Hugging Face hub or its cache."""

    label: str

    def values(self) -> Values:
        return openai_values(self.label)

    def tensors(self) -> "Tensors":
        from nanogpt.interop.names import from_gpt2
        from nanogpt.interop.tensor_checks import weights_by_plain_name

        file = download_from_hub(HUB[self.label], WEIGHTS)
        values = self.values()
        names = match_tensors(read_header(file), expected_layout(values, input_first=True), self.label)
        weights = weights_by_plain_name(read_tensors(file), names, values, one_line(file))
        return from_gpt2(weights, input_first=True)

    def tokenizer(self) -> Tokenizer | None:
        return GPT2Tokenizer()


@dataclass(frozen=True)
class HFFolder:
    """What transformers' save_pretrained, or our export, writes."""

    path: Path

    @property
    def label(self) -> str:
        return self.path.resolve().name

    def values(self) -> Values:
        return self.read_checked()[0]

    def read_checked(self) -> tuple[Values, dict[str, StoredTensor], dict[str, str]]:
        """The values, what is stored, and plain name -> stored name, once config.json and the weights agree."""
        where = f"{one_line(self.path)}/{CONFIG}"
        values, stored = from_hf_config(read_json(self.path / CONFIG), where), read_headers(self.path)
        return values, stored, match_tensors(stored, expected_layout(values, input_first=True), where)

    def tensors(self) -> "Tensors":
        from nanogpt.interop.names import from_gpt2, from_llama
        from nanogpt.interop.tensor_checks import weights_by_plain_name

        values, stored, names = self.read_checked()
        theirs: Tensors = {}
        for file in sorted({tensor.file for tensor in stored.values()}):
            theirs |= read_tensors(self.path / file)
        weights = weights_by_plain_name(theirs, names, values, one_line(self.path))
        return from_llama(weights) if values["position"] == "rotary" else from_gpt2(weights, input_first=True)

    def tokenizer(self) -> Tokenizer | None:
        return read_tokenizer(self.path)

    def describe_unread(self) -> str:
        """Return which files that may hold other weights aren't read; "" if there are none."""
        read = sorted({tensor.file for tensor in self.read_checked()[1].values()})
        other = list_unread(self.path, read)
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        return f"{read[0]} is read, not {', '.join(map(one_line, other[:3]))}{more}" if other else ""


@dataclass(frozen=True)
class NanoGPTCheckpoint:
    """A checkpoint of nanoGPT's train.py."""

    path: Path

    @property
    def label(self) -> str:
        return self.path.stem

    def values(self) -> Values:
        return self.read_checked()[0]

    def read_checked(self) -> "tuple[Values, Tensors, dict[str, str]]":
        """The values, the tensors, and plain name -> stored name, once model_args and the tensors agree."""
        from nanogpt.interop.pickle_import import read_checkpoint

        arguments, tensors = read_checkpoint(self.path)
        values, where = nanogpt_values(arguments, one_line(self.path)), one_line(self.path)
        stored = {
            name: StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), self.path.name)
            for name, tensor in tensors.items()
        }
        return (
            values,
            tensors,
            match_tensors(stored, expected_layout(values, input_first=False), f"{where}: model_args"),
        )

    def tensors(self) -> "Tensors":
        from nanogpt.interop.names import from_gpt2
        from nanogpt.interop.tensor_checks import weights_by_plain_name

        values, tensors, names = self.read_checked()
        weights = weights_by_plain_name(tensors, names, values, one_line(self.path))
        return from_gpt2({name: tensor.float() for name, tensor in weights.items()}, input_first=False)

    def tokenizer(self) -> Tokenizer | None:
        folder = self.path.parent
        if (folder / tokenizers.FILE).exists():
            return read_tokenizer(folder)
        if why := tokenizers.explain_meta_pickle(folder):
            raise BadInput(why)
        return GPT2Tokenizer() if self.values()["vocab_size"] in (50_257, 50_304) else None


def nanogpt_values(arguments: Mapping[str, Any], where: str) -> Values:
    """The values of nanoGPT's model_args. Raises BadCheckpoint naming what is missing, unknown or no size."""
    if lacking := [name for name in (*SIZES, "bias") if name not in arguments]:
        raise BadCheckpoint(f"{where}: model_args lacks {', '.join(lacking)}")
    if unknown := [name for name in arguments if name not in (*SIZES, "bias", "dropout")]:
        raise BadCheckpoint(f"{where}: model_args has {one_line(unknown[0])}, which nanoGPT's network doesn't have")
    for name in SIZES:
        if not isinstance(arguments[name], int) or isinstance(arguments[name], bool) or arguments[name] < 1:
            raise BadCheckpoint(
                f"{where}: model_args: {name}={one_line(arguments[name])}: allowed: a whole number above 0"
            )
    if not isinstance(arguments["bias"], bool):
        raise BadCheckpoint(f"{where}: model_args: bias={one_line(arguments['bias'])}: allowed: true or false")
    values = gpt2_values(*(arguments[name] for name in (*SIZES, "bias")), activation="gelu")
    try:
        schema.from_dict(ModelConfig, values)
    except BadInput as error:
        raise BadCheckpoint(f"{where}: model_args: not a network that can be built here: {error}") from None
    return values


@dataclass(frozen=True)
class RunWeights:
    """One of our own run directories, at its best checkpoint."""

    path: Path

    @property
    def label(self) -> str:
        return schema.read_config(TrainConfig, self.path / CONFIG).model.name

    def values(self) -> Values:
        model = schema.read_config(TrainConfig, self.path / CONFIG).model
        model = model.with_vocab(len(tokenizers.load(self.path).tokens))
        return {key: getattr(model, key) for key in [*GPT2_DEFAULTS, *SIZES, "bias", "activation"]} | {
            "conv": [*model.conv]
        }

    def tensors(self) -> "Tensors":
        from nanogpt.interop.names import cut_padding
        from nanogpt.run_directory import RunDirectory

        tensors, vocab = RunDirectory(self.path).checkpoints.choose("best").model, self.values()["vocab_size"]
        return cut_padding(tensors, ModelConfig(vocab_size=vocab))

    def tokenizer(self) -> Tokenizer | None:
        return tokenizers.load(self.path)


def find_source(init_from: str) -> WeightSource:
    """The weights that a name or a path means. Raises BadInput with what is allowed and the nearest name."""
    if init_from in GPT2_SIZES:
        return OpenAIWeights(init_from)
    path = Path(init_from)  # os.path's questions say no where pathlib's raise: of names that are too long
    if os.path.isfile(path):
        return NanoGPTCheckpoint(path)
    if os.path.exists(path / CONFIG):
        return RunWeights(path) if "training" in read_json(path / CONFIG) else HFFolder(path)
    if os.path.isdir(path):
        raise BadCheckpoint(f"init_from={one_line(init_from)}: a folder without {CONFIG}")
    names = ["scratch", *GPT2_SIZES]
    if init_from == "resume":
        raise BadInput("init_from=resume: the same command continues a run by itself; resume.run=FOLDER another one")
    raise BadInput(
        f"init_from={one_line(init_from)}: no such weights; allowed: {', '.join(names)}, a Hugging Face folder, "
        f"nanoGPT's ckpt.pt, a run directory{hint(init_from, names)}"
    )


def fill_from_weights(init_from: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """The model section of a config with what the weights decide in place of every null.

    Raises BadInput for a value that contradicts the weights. `block_size` may be smaller where positions are learned
    (the embedding is cut, as by nanoGPT's crop_block_size) and anything where they are rotary; `dropout` is free.
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
            why = (
                f"at most {value}"
                if key == "block_size"
                else f"{str(value).lower()}, or leave it to the weights with model=pretrained"
            )
            shown = str(given).lower() if isinstance(given, bool) else given
            raise BadInput(
                f"model.{key}={one_line(shown)}: doesn't fit init_from={one_line(init_from)}; allowed: {why}"
            )
    if ours.get("dropout") is None:
        ours["dropout"] = 0.0
    if ours.get("name") == "pretrained":
        ours["name"] = (
            "".join(c if c.isalnum() or c in "._-" else "_" for c in label).lstrip("._-")[:64] or "pretrained"
        )
    return ours


@cache
def read_label_and_values(init_from: str, _: int) -> tuple[str, Values]:
    """Label and values, read once for all points of a sweep while the files stay as they are."""
    source = find_source(init_from)
    values = source.values()
    said = source.describe_unread() if isinstance(source, HFFolder) else ""
    if isinstance(source, OpenAIWeights) and os.path.exists(init_from):
        said = f"OpenAI's weights are read, not what is in this folder; init_from=./{init_from} names that"
    if said and os.environ.get("RANK", "0") == "0":
        print(f"note: init_from={one_line(init_from)}: {said}", file=sys.stderr)
    return source.label, values


def newest_mtime(init_from: str) -> int:
    path = Path(init_from)
    paths = (file for file in (path, *(path / name for name in (CONFIG, WEIGHTS, INDEX))) if os.path.exists(file))
    return max((file.stat().st_mtime_ns for file in paths), default=0)


def download_from_hub(repository: str, name: str) -> Path:
    """A file of the hub, from the cache where it is there. Raises BadEnvironment within seconds when offline."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        check_hub_reachable()
        return Path(hf_hub_download(repository, name))
    except (OSError, HfHubHTTPError) as error:
        why = one_line(getattr(error, "reason", None) or error, 120)
        raise BadEnvironment(
            f"{repository}/{name}: not in the cache of the Hugging Face hub, and it can't be downloaded ({why}); "
            f"have the folder yourself and name it: init_from=path/to/{repository.rpartition('/')[2]}"
        ) from None
