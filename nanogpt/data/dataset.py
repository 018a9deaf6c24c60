"""A prepared data set: its meta.json, its shards, and the checks before anything trains on them.

Also opens folders of other makers' token files in place (`data.source=FOLDER`): llm.c and modded-nanogpt shards, and
nanoGPT's train.bin and val.bin.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from nanogpt import tokenizer as tokenizers
from nanogpt.config import DataConfig
from nanogpt.data.content import DigestCache, check_ids, compute_source_digest, is_token_folder
from nanogpt.data.folders import FORMAT, find_dataset_folder
from nanogpt.data.shards import Shard, SplitName, Tokens, file_sha256, open_shard
from nanogpt.data.splits import splits_in_name
from nanogpt.errors import BadData, one_line
from nanogpt.files import open_regular, read_json_bytes
from nanogpt.schema import ConfigModel
from nanogpt.tokenizer import Tokenizer

FULL_CHECK_BYTES = 2 * 10**9


class ShardMeta(ConfigModel):
    """One token file."""

    file: str
    tokens: int
    sha256: str


class SplitMeta(ConfigModel):
    """One split: what it was made of and the files it is in."""

    documents: int
    bytes: int
    tokens: int
    shards: list[ShardMeta]
    end_of_text: int | None = None
    """How often the end-of-text id occurs; None: prepared before this was counted."""


class DatasetMeta(ConfigModel):
    """meta.json."""

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
    """Rows without a text that were left out."""
    notes: list[str] = Field(default_factory=list[str])
    """What was left out or read in an unexpected way; one sentence each."""


@dataclass(frozen=True)
class Split:
    """The shards of one split; `vocab_size` bounds every id read from them."""

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
        """int64 tokens of shape (count,). Raises BadData for a short file or an id outside the vocabulary."""
        return self.shards[shard].read(offset, count, self.vocab_size)


@dataclass(frozen=True)
class Dataset:
    """Tokens to train and validate on, with their tokenizer."""

    folder: Path
    tokenizer: Tokenizer
    train: Split
    val: Split
    fingerprint: str
    """sha256 over the tokenizer and every shard: equal means the same ids in the same order."""
    description: str
    """One line for a person."""
    files: dict[str, str]
    """Digest of every shard by its file's name."""
    notes: tuple[str, ...] = ()
    """What was left out of the source or read in an unexpected way."""

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer.tokens)


def expected_vocab_size(config: DataConfig) -> tuple[int, bool]:
    """How many ids there are or will be, and whether that is sure. Only reads, and prepares nothing.

    Of data that isn't prepared the kind of tokenizer says it, but for characters, of which 256 are assumed.
    """
    if is_token_folder(config.source) and (Path(str(config.source)) / tokenizers.FILE).exists():
        return len(tokenizers.load(Path(str(config.source))).tokens), True
    if (meta := find_dataset_folder(config) / "meta.json").exists():
        return read_meta(meta).vocab_size, True
    known = {"byte": 256, "gpt2": 50_257, "bpe": config.vocab_size}.get(config.tokenizer)
    return known or 256, known is not None


def expected_train_tokens(config: DataConfig) -> int | None:
    """Return the number of training tokens of data that is prepared, else None. Only reads headers."""
    if is_token_folder(config.source):
        return sum(open_shard(path).n_tokens for path in Path(str(config.source)).glob("*train*.bin"))
    meta = find_dataset_folder(config) / "meta.json"
    return read_meta(meta).splits["train"].tokens if meta.exists() else None


def open_dataset(config: DataConfig) -> Dataset:
    """The prepared data set, checked. Raises BadData with the command that prepares or repairs it."""
    if is_token_folder(config.source):
        return open_token_folder(config, Path(str(config.source)))
    folder = find_dataset_folder(config)
    if config.on_bad_row == "stop" and (bad := read_meta(folder / "meta.json").bad_rows):
        why = f"prepared with data.on_bad_row=skip, which left out {bad:,} rows"
        raise BadData(f"{one_line(folder)}: {why}; give data.on_bad_row=skip, or mend the rows")
    return open_prepared(folder, config.verify)


def open_prepared(folder: Path, verify: str = "auto") -> Dataset:
    """A folder that `prepare` made."""
    meta = read_meta(folder / "meta.json")
    tokenizer = tokenizers.load(folder)
    if tokenizers.fingerprint(tokenizer) != meta.tokenizer_sha256 or len(tokenizer.tokens) != meta.vocab_size:
        raise BadData(f"{one_line(folder / tokenizers.FILE)}: is not the tokenizer this data was made with; {REPAIR}")
    size = sum(shard.tokens for split in meta.splits.values() for shard in split.shards) * 4
    full = verify == "full" or (verify == "auto" and size <= FULL_CHECK_BYTES)
    splits = {name: open_split(folder, name, split, meta.vocab_size, full) for name, split in meta.splits.items()}
    digests = {shard.file: shard.sha256 for split in meta.splits.values() for shard in split.shards}
    return Dataset(
        folder,
        tokenizer,
        splits["train"],
        splits["val"],
        hashlib.sha256("".join([meta.tokenizer_sha256, *digests.values()]).encode()).hexdigest(),
        describe_meta(meta),
        digests,
        tuple(meta.notes),
    )


REPAIR = "prepare it again with overwrite=true"


def read_meta(path: Path) -> DatasetMeta:
    """meta.json, strictly. Raises BadData."""
    try:
        meta = DatasetMeta.model_validate(read_json_bytes(path))
    except FileNotFoundError:
        raise BadData(f"{one_line(path)}: not found") from None
    except (OSError, ValueError, ValidationError) as error:
        raise BadData(
            f"{one_line(path)}: not a valid meta.json ({one_line(str(error).splitlines()[0])}); {REPAIR}"
        ) from None
    if meta.format != FORMAT:
        raise BadData(f"{one_line(path)}: format {meta.format}, this program reads {FORMAT}; {REPAIR}")
    if set(meta.splits) != {"train", "val"}:
        raise BadData(f"{one_line(path)}: has no train and val split; {REPAIR}")
    return meta


def open_split(folder: Path, name: SplitName, split: SplitMeta, vocab_size: int, full: bool) -> Split:
    """Open and check the shards of a split."""
    shards: list[Shard] = []
    for one in split.shards:
        if os.path.basename(one.file) != one.file or not one.file.isprintable():
            raise BadData(f"{one_line(folder)}/meta.json: shard name {one_line(one.file)!r} leaves the folder")
        shard = open_shard(folder / one.file)
        if shard.n_tokens != one.tokens:
            raise BadData(
                f"{one_line(shard.path)}: holds {shard.n_tokens} tokens, meta.json says {one.tokens}; {REPAIR}"
            )
        if full and file_sha256(shard.path) != one.sha256:
            raise BadData(f"{one_line(shard.path)}: sha256 is not the one in meta.json, the file is corrupt; {REPAIR}")
        shards.append(shard)
    return Split(name, tuple(shards), vocab_size)


def open_token_folder(config: DataConfig, folder: Path) -> Dataset:
    """Token files of llm.c, modded-nanogpt or nanoGPT; the tokenizer is tokenizer.json there, or `data.tokenizer`."""
    if (folder / tokenizers.FILE).exists():
        tokenizer = tokenizers.load(folder)
    elif (folder / "meta.pkl").exists():
        raise BadData(
            f"{one_line(folder)}/meta.pkl: a pickle can run code, so it isn't read; "
            f"convert it safely: python -m nanogpt.interop.pickle_import {one_line(folder)}/meta.pkl"
        )
    elif config.tokenizer in ("gpt2", "byte"):
        tokenizer = tokenizers.build(config.tokenizer, [])
    else:
        raise BadData(f"{one_line(folder)}: token files without a tokenizer.json; say which, e.g. data.tokenizer=gpt2")
    found: dict[SplitName, list[Shard]] = {"train": [], "val": []}
    for path in sorted(folder.glob("*.bin")):
        names: list[SplitName] = [name for name in found if name in path.name]
        if "test" in splits_in_name(path.name):
            raise BadData(f"{one_line(path)}: is named for testing; keep it out of a folder that is trained on")
        if len(names) != 1:
            raise BadData(f"{one_line(path)}: its name says neither train nor val")
        found[names[0]].append(open_shard(path))
    vocab_size = len(tokenizer.tokens)
    splits = {name: Split(name, tuple(shards), vocab_size) for name, shards in found.items()}
    for name, split in splits.items():
        if not split.shards:
            raise BadData(f"{one_line(folder)}: no {name} file; expected {name}.bin or *_{name}_*.bin")
    check_source_digest(config)
    prints = check_shards([shard for split in splits.values() for shard in split.shards], vocab_size, Path(config.dir))
    return Dataset(
        folder,
        tokenizer,
        splits["train"],
        splits["val"],
        hashlib.sha256("".join([tokenizers.fingerprint(tokenizer), *prints.values()]).encode()).hexdigest(),
        f"{folder}: {splits['train'].n_tokens:,} train and {splits['val'].n_tokens:,} val tokens, "
        f"vocabulary {vocab_size:,}",
        prints,
    )


def check_source_digest(config: DataConfig) -> None:
    """Raise BadData if the source holds something else than `data.source_sha256` says."""
    if config.source_sha256 is None or (found := compute_source_digest(config)) in (None, config.source_sha256):
        return
    raise BadData(
        f"data.source={one_line(config.source)}: holds something else (sha256 {str(found)[:12]}…) than "
        f"data.source_sha256={config.source_sha256[:12]}…"
    )


def check_shards(shards: list[Shard], vocab_size: int, memory_folder: Path) -> dict[str, str]:
    """Read every token file in full, unless it is remembered, and return their digests by name.

    Raises BadData naming file, id and offset of the first id that the vocabulary doesn't have.
    """
    memory = DigestCache(memory_folder)
    facts = {shard.path: memory.read(shard.path, shard) for shard in shards}
    memory.save()
    for shard in shards:
        check_ids(shard, facts[shard.path], vocab_size)
    full = sum(shard.path.stat().st_size for shard in shards) <= FULL_CHECK_BYTES
    return {path.name: one.sha256 if full else compute_sampled_digest(path) for path, one in facts.items()}


def compute_sampled_digest(path: Path) -> str:
    """Return the digest of a large file's size and of 64 blocks spread over it, which its fingerprint always was."""
    size, block = path.stat().st_size, 2**16
    digest = hashlib.sha256(str(size).encode())
    with open_regular(path) as file:
        for i in range(64):
            file.seek(max(0, size - block) * i // 63)
            digest.update(file.read(block))
    return digest.hexdigest()


def describe_meta(meta: DatasetMeta) -> str:
    """`python 3.11.7, 717 documents, 10,944,000 characters, sha256 1a2b3c4d…, …`."""
    python = f"Python {meta.source['python']}, " if "python" in meta.source else ""
    train, val = meta.splits["train"], meta.splits["val"]
    return (
        f"{python}{meta.documents:,} documents, {meta.characters:,} characters, sha256 {meta.sha256[:12]}; "
        f"{meta.tokenizer} vocabulary {meta.vocab_size:,}, {train.tokens:,} train and {val.tokens:,} val tokens"
    )
