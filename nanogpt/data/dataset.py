"""Open and check a prepared data set: its meta.json and its shards.

Folders of token files made elsewhere are opened in place (`data.source=FOLDER`): llm.c and modded-nanogpt shards, and
nanoGPT's train.bin and val.bin.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from nanogpt import tokenizer as tokenizers
from nanogpt.config import DataConfig
from nanogpt.data.content import DigestCache, check_ids, compute_source_digest, token_folder
from nanogpt.data.folders import FORMAT, find_dataset_folder
from nanogpt.data.shards import Shard, SplitName, Tokens, file_sha256, open_shard
from nanogpt.data.splits import splits_in_name
from nanogpt.errors import BadData, one_line
from nanogpt.files import open_regular, read_json_bytes
from nanogpt.schema import ConfigModel
from nanogpt.tokenizer import Tokenizer

FULL_CHECK_BYTES = 2 * 10**9
REPAIR = "prepare it again with overwrite=true"


class ShardMeta(ConfigModel):
    """Token file of a split."""

    file: str
    tokens: int
    sha256: str


class SplitMeta(ConfigModel):
    """Size of a split, and its token files."""

    documents: int
    bytes: int
    tokens: int
    shards: list[ShardMeta]
    end_of_text: int | None = None
    """Number of end-of-text ids; None: prepared before this was counted."""


class DatasetMeta(ConfigModel):
    """Content of meta.json."""

    format: int
    source: dict[str, Any]
    documents: int
    characters: int
    sha256: str
    """Digest of all the text, in order."""
    stamp: str
    """Names, sizes and times of the local source files when they were read."""
    tokenizer: str
    tokenizer_sha256: str
    vocab_size: int
    dtype: Literal["uint16", "uint32"]
    splits: dict[SplitName, SplitMeta]
    bad_rows: int = 0
    """Number of rows without a text, which were left out."""
    notes: list[str] = Field(default_factory=list[str])
    """Files and rows left out or read in an unexpected way; one sentence each."""


@dataclass(frozen=True)
class Split:
    """Shards of a split; every id read from them is below `vocab_size`."""

    name: SplitName
    shards: tuple[Shard, ...]
    vocab_size: int

    @property
    def shard_tokens(self) -> list[int]:
        return [shard.n_tokens for shard in self.shards]

    @property
    def n_tokens(self) -> int:
        return sum(self.shard_tokens)

    def read(self, shard: int, offset: int, count: int) -> Tokens:
        """Return int64 tokens of shape (count,). Raises BadData for a short file or an id outside the vocabulary."""
        return self.shards[shard].read(offset, count, self.vocab_size)


@dataclass(frozen=True)
class Dataset:
    """Tokens to train and validate on, with their tokenizer."""

    folder: Path
    tokenizer: Tokenizer
    train: Split
    val: Split
    description: str
    """One line, printed before training."""
    files: dict[str, str]
    """Digest of every shard by the name of its file."""
    notes: tuple[str, ...] = ()
    """Files and rows left out or read in an unexpected way."""

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer.tokens)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the tokenizer and every shard; equal data sets have the same ids in the same order."""
        joined = "".join([tokenizers.fingerprint(self.tokenizer), *self.files.values()])
        return hashlib.sha256(joined.encode()).hexdigest()


def expected_vocab_size(config: DataConfig) -> tuple[int, bool]:
    """Return the vocabulary size and whether it is certain, without preparing anything.

    For data that isn't prepared it follows from the kind of tokenizer; for characters, 256 is assumed.
    """
    if (folder := token_folder(config)) and (folder / tokenizers.FILE).exists():
        return len(tokenizers.load(folder).tokens), True
    if (meta := find_dataset_folder(config) / "meta.json").exists():
        return read_meta(meta).vocab_size, True
    known = {"byte": 256, "gpt2": 50_257, "bpe": config.vocab_size}.get(config.tokenizer)
    return known or 256, known is not None


def expected_train_tokens(config: DataConfig) -> int | None:
    """Return the number of training tokens of prepared data, read from headers, or None if it isn't prepared."""
    if folder := token_folder(config):
        return sum(open_shard(path).n_tokens for path in folder.glob("*train*.bin"))
    meta = find_dataset_folder(config) / "meta.json"
    return read_meta(meta).splits["train"].tokens if meta.exists() else None


def open_dataset(config: DataConfig) -> Dataset:
    """Return the prepared data set, checked. Raises BadData with the command that prepares or repairs it."""
    if source := token_folder(config):
        return open_token_folder(config, source)
    folder = find_dataset_folder(config)
    if config.on_bad_row == "stop" and (bad := read_meta(folder / "meta.json").bad_rows):
        why = f"prepared with data.on_bad_row=skip, which left out {bad:,} rows"
        raise BadData(f"{one_line(folder)}: {why}; give data.on_bad_row=skip, or correct the rows")
    return open_prepared(folder, config.verify)


def open_prepared(folder: Path, verify: str = "auto") -> Dataset:
    """Return the data set in a folder that `prepare` made. Raises BadData if it is damaged."""
    meta = read_meta(folder / "meta.json")
    tokenizer = tokenizers.load(folder)
    if tokenizers.fingerprint(tokenizer) != meta.tokenizer_sha256 or len(tokenizer.tokens) != meta.vocab_size:
        raise BadData(f"{one_line(folder / tokenizers.FILE)}: is not the tokenizer this data was made with; {REPAIR}")
    size = sum(shard.tokens for split in meta.splits.values() for shard in split.shards) * 4
    full = verify == "full" or (verify == "auto" and size <= FULL_CHECK_BYTES)
    splits = {name: open_split(folder, name, split, meta.vocab_size, full) for name, split in meta.splits.items()}
    digests = {shard.file: shard.sha256 for split in meta.splits.values() for shard in split.shards}
    notes = tuple(meta.notes)
    return Dataset(folder, tokenizer, splits["train"], splits["val"], describe_meta(meta), digests, notes)


def read_meta(path: Path) -> DatasetMeta:
    """Return the content of meta.json. Raises BadData if it is missing or invalid."""
    try:
        meta = DatasetMeta.model_validate(read_json_bytes(path))
    except FileNotFoundError:
        raise BadData(f"{one_line(path)}: not found") from None
    except (OSError, ValueError, ValidationError) as error:
        why = one_line(str(error).splitlines()[0])
        raise BadData(f"{one_line(path)}: not a valid meta.json ({why}); {REPAIR}") from None
    if meta.format != FORMAT:
        raise BadData(f"{one_line(path)}: format {meta.format}, this program reads {FORMAT}; {REPAIR}")
    if set(meta.splits) != {"train", "val"}:
        raise BadData(f"{one_line(path)}: has no train and val split; {REPAIR}")
    return meta


def open_split(folder: Path, name: SplitName, split: SplitMeta, vocab_size: int, full: bool) -> Split:
    """Return the shards of a split, checked by size, and with `full` by digest. Raises BadData."""
    shards: list[Shard] = []
    for meta in split.shards:
        if os.path.basename(meta.file) != meta.file or not meta.file.isprintable():
            raise BadData(f"{one_line(folder)}/meta.json: shard name {one_line(meta.file)!r} leaves the folder")
        shard = open_shard(folder / meta.file)
        where = one_line(shard.path)
        if shard.n_tokens != meta.tokens:
            raise BadData(f"{where}: holds {shard.n_tokens} tokens, meta.json says {meta.tokens}; {REPAIR}")
        if full and file_sha256(shard.path) != meta.sha256:
            raise BadData(f"{where}: sha256 is not the one in meta.json, the file is corrupt; {REPAIR}")
        shards.append(shard)
    return Split(name, tuple(shards), vocab_size)


def open_token_folder(config: DataConfig, folder: Path) -> Dataset:
    """Return the data set of a folder of token files, with the tokenizer.json there, or `data.tokenizer`.

    Raises BadData.
    """
    tokenizer = open_token_folder_tokenizer(config, folder)
    vocab_size = len(tokenizer.tokens)
    train, val = (Split(name, tuple(shards), vocab_size) for name, shards in find_shards(folder).items())
    check_source_digest(config)
    digests = check_shards([*train.shards, *val.shards], vocab_size, Path(config.dir))
    sizes = f"{train.n_tokens:,} train and {val.n_tokens:,} val tokens"
    return Dataset(folder, tokenizer, train, val, f"{folder}: {sizes}, vocabulary {vocab_size:,}", digests)


def open_token_folder_tokenizer(config: DataConfig, folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder of token files. Raises BadData if it isn't known."""
    if (folder / tokenizers.FILE).exists():
        return tokenizers.load(folder)
    if why := tokenizers.explain_meta_pickle(folder):
        raise BadData(why)
    if config.tokenizer in ("gpt2", "byte"):
        return tokenizers.build(config.tokenizer, [])
    raise BadData(f"{one_line(folder)}: token files without a tokenizer.json; name it, e.g. data.tokenizer=gpt2")


def find_shards(folder: Path) -> dict[SplitName, list[Shard]]:
    """Return the token files of each split, assigned by their names. Raises BadData."""
    shards: dict[SplitName, list[Shard]] = {"train": [], "val": []}
    for path in sorted(folder.glob("*.bin")):
        names: list[SplitName] = [name for name in shards if name in path.name]
        if "test" in splits_in_name(path.name):
            raise BadData(f"{one_line(path)}: is named for testing; keep it out of a folder that is trained on")
        if len(names) != 1:
            raise BadData(f"{one_line(path)}: its name says neither train nor val")
        shards[names[0]].append(open_shard(path))
    if missing := [name for name in shards if not shards[name]]:
        name = missing[0]
        raise BadData(f"{one_line(folder)}: no {name} file; expected {name}.bin or *_{name}_*.bin")
    return shards


def check_source_digest(config: DataConfig) -> None:
    """Raise BadData if the content of the source differs from `data.source_sha256`."""
    if config.source_sha256 is None or (found := compute_source_digest(config)) in (None, config.source_sha256):
        return
    raise BadData(
        f"data.source={one_line(config.source)}: holds something else (sha256 {str(found)[:12]}…) than "
        f"data.source_sha256={config.source_sha256[:12]}…"
    )


def check_shards(shards: list[Shard], vocab_size: int, cache_folder: Path) -> dict[str, str]:
    """Read every token file in full, unless its facts are cached, and return their digests by name.

    Raises BadData naming file, id and offset of the first id outside the vocabulary.
    """
    cache = DigestCache(cache_folder)
    facts = {shard.path: cache.read(shard.path, shard) for shard in shards}
    cache.save()
    for shard in shards:
        check_ids(shard, facts[shard.path], vocab_size)
    full = sum(shard.path.stat().st_size for shard in shards) <= FULL_CHECK_BYTES
    return {path.name: fact.sha256 if full else compute_sampled_digest(path) for path, fact in facts.items()}


def compute_sampled_digest(path: Path) -> str:
    """Return the digest of a large file's size and of 64 blocks spread over it, as earlier versions computed it."""
    size, block = path.stat().st_size, 2**16
    digest = hashlib.sha256(str(size).encode())
    with open_regular(path) as file:
        for i in range(64):
            file.seek(max(0, size - block) * i // 63)
            digest.update(file.read(block))
    return digest.hexdigest()


def describe_meta(meta: DatasetMeta) -> str:
    """Return `Python 3.11.7, 717 documents, 10,944,000 characters, sha256 1a2b3c4d…; …`."""
    python = f"Python {meta.source['python']}, " if "python" in meta.source else ""
    train, val = meta.splits["train"], meta.splits["val"]
    return (
        f"{python}{meta.documents:,} documents, {meta.characters:,} characters, sha256 {meta.sha256[:12]}; "
        f"{meta.tokenizer} vocabulary {meta.vocab_size:,}, {train.tokens:,} train and {val.tokens:,} val tokens"
    )
