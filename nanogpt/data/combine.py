"""The record of a whole data set from those of its parts, and what it must hold."""

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
    """Raise BadData if there is no text, or if rows were left out that this config doesn't want left out."""
    bad = [where for part in parts for where in part.first_bad_rows]
    if bad and corpus.config.on_bad_row == "stop":
        raise BadData(f"{one_line(bad[0])}; data.on_bad_row=skip leaves such rows out")
    if not any(part.has_text for part in parts):
        why = f"; no row has a text, e.g. {one_line(bad[0])}" if bad else ""
        raise BadData(f"data.source={one_line(corpus.config.source)}: there is no text in it{why}")


def check_windows(config: DataConfig, meta: DatasetMeta, block_size: int | None) -> None:
    """Raise BadData if a split is too short to train or validate on. Windows don't cross shards."""
    size = block_size or 1
    needs: dict[SplitName, int] = {"train": 2 * size if config.order == "permutation" else size + 1, "val": size + 1}
    for name, needed in needs.items():
        split = meta.splits[name]
        if max((shard.tokens for shard in split.shards), default=0) < needed:
            window = (
                f"model.block_size={block_size} needs {needed:,}" if block_size else f"at least {needed} are needed"
            )
            raise BadData(
                f"data.val_fraction={config.val_fraction}: the {name} split of {meta.documents:,} documents has "
                f"{split.tokens:,} tokens, {window} in one piece; choose another share or more text"
            )


def build_meta(corpus: Corpus, tokenizer: Tokenizer, parts: list[EncodedPart]) -> DatasetMeta:
    """meta.json of the whole."""
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
    """Yield what tokenising showed: rows that were left out, separators, end-of-text marks that stay text."""
    if bad := sum(part.bad_rows for part in parts):
        first = [where for part in parts for where in part.first_bad_rows]
        yield f"left out, rows without a text: {bad:,} ({'; '.join(first[:BAD_ROWS_NAMED])})"
    separators = sum(part.separators for part in parts)
    if separators or config.separator:
        name = one_line(config.separator or END_OF_TEXT)
        yield f"{name} in the text ends a document: found {separators:,} times"
    if plain := sum(part.plain_end_of_text for part in parts):
        why = (
            f"the {config.tokenizer} tokenizer has no such id"
            if config.tokenizer in ("char", "byte")
            else "data.separator"
        )
        remedy = "; data.separator='<|endoftext|>' splits the text there" if config.separator is None else ""
        yield f"{END_OF_TEXT} stays plain text ({why}): found {plain:,} times{remedy}"


def combine_digests(parts: Iterable[str]) -> str:
    """The digest of all text from the digests of its parts."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def merge_splits(splits: list[SplitMeta]) -> SplitMeta:
    """One split over all parts."""
    return SplitMeta(
        documents=sum(one.documents for one in splits),
        bytes=sum(one.bytes for one in splits),
        tokens=sum(one.tokens for one in splits),
        shards=[shard for one in splits for shard in one.shards],
        end_of_text=sum(one.end_of_text or 0 for one in splits),
    )
