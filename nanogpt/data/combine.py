"""Combine the records of all parts into that of the data set, and check that it can be trained on."""

import hashlib
from collections.abc import Iterable, Iterator

from nanogpt import tokenizer as tokenizers
from nanogpt.config import DataConfig
from nanogpt.data.corpora import BAD_ROWS_NAMED, Corpus
from nanogpt.data.dataset import FORMAT, DatasetMeta, SplitMeta, SplitName
from nanogpt.data.encode import SPLITS, EncodedPart
from nanogpt.data.shards import dtype_for
from nanogpt.errors import BadData, one_line
from nanogpt.tokenizer import END_OF_TEXT, Tokenizer


def check_parts(corpus: Corpus, parts: list[EncodedPart]) -> None:
    """Raise BadData if there is no text, or if rows were left out, which data.on_bad_row=stop forbids."""
    bad = [where for part in parts for where in part.first_bad_rows]
    if bad and corpus.config.on_bad_row == "stop":
        raise BadData(f"{one_line(bad[0])}; data.on_bad_row=skip leaves such rows out")
    if not any(part.has_text for part in parts):
        raise corpus.no_text_error(bad)


def check_windows(config: DataConfig, meta: DatasetMeta, block_size: int | None) -> None:
    """Raise BadData if a split has no shard with a window of `block_size` tokens; null: of one token and the next."""
    size = block_size or 1
    needs: dict[SplitName, int] = {"train": 2 * size if config.order == "permutation" else size + 1, "val": size + 1}
    for name, needed in needs.items():
        split = meta.splits[name]
        if max((shard.tokens for shard in split.shards), default=0) < needed:
            need = f"model.block_size={block_size} needs {needed:,}" if block_size else f"at least {needed} are needed"
            raise BadData(
                f"data.val_fraction={config.val_fraction}: the {name} split of {meta.documents:,} documents has "
                f"{split.tokens:,} tokens, {need} in one piece; choose another fraction or more text"
            )


def build_meta(corpus: Corpus, tokenizer: Tokenizer, parts: list[EncodedPart]) -> DatasetMeta:
    """Return the content of meta.json."""
    return DatasetMeta(
        format=FORMAT,
        source=corpus.describe(),
        documents=sum(part.documents for part in parts),
        characters=sum(part.characters for part in parts),
        sha256=combine_digests(part.sha256 for part in parts),
        stamp=corpus.stamp(),
        tokenizer=corpus.config.tokenizer,
        tokenizer_sha256=tokenizers.fingerprint(tokenizer),
        vocab_size=len(tokenizer.tokens),
        dtype="uint16" if dtype_for(len(tokenizer.tokens)).itemsize == 2 else "uint32",
        splits={name: merge_splits([part.splits[name] for part in parts]) for name in SPLITS},
        bad_rows=sum(part.bad_rows for part in parts),
        notes=[*corpus.all_notes(), *describe_parts(corpus.config, parts)],
    )


def describe_parts(config: DataConfig, parts: list[EncodedPart]) -> Iterator[str]:
    """Yield notes on rows left out, separators, and end-of-text marks that stay text."""
    if bad := sum(part.bad_rows for part in parts):
        first = [where for part in parts for where in part.first_bad_rows]
        yield f"left out, rows without a text: {bad:,} ({'; '.join(first[:BAD_ROWS_NAMED])})"
    separators = sum(part.separators for part in parts)
    if separators or config.separator:
        name = one_line(config.separator or END_OF_TEXT)
        yield f"{name} in the text ends a document: found {separators:,} times"
    if plain := sum(part.plain_end_of_text for part in parts):
        no_id = config.tokenizer in ("char", "byte")
        why = f"the {config.tokenizer} tokenizer has no such id" if no_id else "data.separator"
        remedy = "; data.separator='<|endoftext|>' splits the text there" if config.separator is None else ""
        yield f"{END_OF_TEXT} stays plain text ({why}): found {plain:,} times{remedy}"


def combine_digests(parts: Iterable[str]) -> str:
    """Return the digest of all text, from the digests of its parts."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def merge_splits(splits: list[SplitMeta]) -> SplitMeta:
    """Return the record of a split from its records in all parts."""
    return SplitMeta(
        documents=sum(split.documents for split in splits),
        bytes=sum(split.bytes for split in splits),
        tokens=sum(split.tokens for split in splits),
        shards=[shard for split in splits for shard in split.shards],
        end_of_text=sum(split.end_of_text or 0 for split in splits),
    )
