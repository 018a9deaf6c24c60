"""Corpus -> tokenizer -> shards, over processes, part by part: an interrupted preparation continues where it was.

Everything is written to a hidden folder beside the final one, which appears by one rename when all of it is there.
"""

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from nanogpt import tokenizer as tokenizers
from nanogpt.config import DataConfig
from nanogpt.data import corpora
from nanogpt.data.corpora import Corpus
from nanogpt.data.dataset import (
    FORMAT,
    Dataset,
    Meta,
    SplitMeta,
    folder_of,
    is_token_folder,
    open_dataset,
    read_meta,
)
from nanogpt.data.encode import SPLITS, Part, encode_part, read_part, split, start_worker, work_part
from nanogpt.data.shards import dtype_for
from nanogpt.errors import BadData, BadEnvironment, escaped
from nanogpt.files import locked, sync, write_atomic
from nanogpt.schema import signature, to_json
from nanogpt.tokenizer import Tokenizer
from nanogpt.tracking.console import Meter

SMALL_BYTES = 200 * 2**20  # train.py prepares local text up to this size by itself
BPE_CHARACTERS = 200_000_000  # a vocabulary is learned from this much text at most


def ensure(config: DataConfig) -> Dataset:
    """The data set, prepared now if it is small. Raises BadData with the command that prepares a large one."""
    folder = folder_of(config)
    if not is_token_folder(config.source) and not (folder / "meta.json").exists():
        files = () if config.corpus == "hub" and config.source is None else find(config).files
        if not files or sum(path.stat().st_size for path in files) > SMALL_BYTES:
            raise BadData(f"{escaped(folder)}: not prepared; run: {command(config)}")
    return prepare(config)


def prepare(config: DataConfig, overwrite: bool = False) -> Dataset:
    """Prepare unless it is done already, and open. Raises BadData, BadEnvironment."""
    if is_token_folder(config.source):
        return open_dataset(config)
    folder = folder_of(config)
    if not (folder / "meta.json").exists() or overwrite:
        corpus = find(config)  # complains before anything is created
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f".{folder.name}.lock", wait=True):
            if not (folder / "meta.json").exists() or overwrite:  # another process may have been faster
                build(corpus, folder)
    refuse_stale(config, folder)
    return open_dataset(config)


def find(config: DataConfig) -> Corpus:
    return corpora.find(config, cache=Path(config.dir) / "downloads")


def command(config: DataConfig) -> str:
    """What to type to prepare this data set."""
    source = f" data.source='{config.source}'" if config.source else ""
    return f"python prepare.py data={config.name}{source}"


def refuse_stale(config: DataConfig, folder: Path) -> None:
    """The files that were prepared are still what they were, where they are still there."""
    if config.source is None:
        return
    try:
        stamp = find(config).stamp()
    except BadData:
        return  # prepared elsewhere and brought here
    if stamp != read_meta(folder / "meta.json").stamp:
        raise BadData(
            f"data.source={escaped(config.source)}: files changed since they were prepared; "
            f"run: {command(config)} overwrite=true"
        )


def build(corpus: Corpus, folder: Path) -> None:
    """Tokenise every part and put the finished folder in its place."""
    work = folder.parent / f".{folder.name}.partial"
    begin(work, corpus)
    tokenizer = fitted(corpus, work)
    encode_parts(corpus, tokenizer, work)
    parts = [read_part(work, number) for number in range(corpus.n_parts)]
    meta = combine(corpus, tokenizer, [part for part in parts if part])
    for name in SPLITS:
        if meta.splits[name].tokens == 0:
            why = f"the {name} split of {meta.documents} documents is empty"
            raise BadData(f"data.val_fraction={corpus.config.val_fraction}: {why}; choose another share or more text")
    write_atomic(work / "meta.json", to_json(meta))
    for path in work.glob("part-*.json"):
        path.unlink()
    (work / "plan").unlink()
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(work, folder)
    sync(folder.parent)


def begin(work: Path, corpus: Corpus) -> None:
    """The working folder, emptied when it holds another source's or another configuration's work."""
    plan = f"{FORMAT} {signature(corpus.config)} {corpus.n_parts} {corpus.stamp()}\n"
    if work.exists() and (not (work / "plan").exists() or (work / "plan").read_text() != plan):
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    write_atomic(work / "plan", plan)


def fitted(corpus: Corpus, work: Path) -> Tokenizer:
    """The tokenizer, learned from the corpus where it must be, and kept."""
    if (work / tokenizers.FILE).exists():
        return tokenizers.load(work)
    config = corpus.config
    tokenizer = tokenizers.build(config.tokenizer, learning_texts(corpus), config.vocab_size)
    if config.vocab_size and len(tokenizer.tokens) < config.vocab_size:
        raise BadData(
            f"data.vocab_size={config.vocab_size}: the text is too small, it gives {len(tokenizer.tokens)} tokens"
        )
    write_atomic(work / tokenizers.FILE, tokenizers.to_json(tokenizer))
    return tokenizer


def learning_texts(corpus: Corpus) -> Iterator[str]:
    """Every character counts for a character vocabulary; BPE learns from training text alone."""
    if corpus.config.tokenizer == "char" and corpus.separate:
        yield "\n"
    characters = 0
    for number in range(corpus.n_parts):
        for document in corpus.documents(number):
            for name, text in split(corpus, document):
                if corpus.config.tokenizer == "char" or name == "train":
                    yield text
                    characters += len(text)
            if corpus.config.tokenizer == "bpe" and characters > BPE_CHARACTERS:
                return


def encode_parts(corpus: Corpus, tokenizer: Tokenizer, work: Path) -> None:
    """Tokenise the parts that are not done yet, here or over processes."""
    todo = [number for number in range(corpus.n_parts) if read_part(work, number) is None]
    workers = min(corpus.config.workers or os.cpu_count() or 1, len(todo))
    total = sum(path.stat().st_size for path in corpus.files) if not corpora.is_table(corpus.files) else 0
    with Meter(f"tokenising {corpus.config.name}", total or None, parts=corpus.n_parts) as meter:
        meter.parts_done(corpus.n_parts - len(todo))
        if workers <= 1:
            for number in todo:
                encode_part(corpus, tokenizer, work, number, meter.add)
                meter.parts_done(1)
            return
        context = multiprocessing.get_context("spawn")
        shared = context.Array("q", 2)
        arguments = (corpus, tokenizer.spec(), work, shared)
        with ProcessPoolExecutor(workers, context, start_worker, arguments) as pool:
            try:
                futures = [pool.submit(work_part, number) for number in todo]
                for future in meter.watching(futures, shared):
                    future.result()
                    meter.parts_done(1)
            except BaseException as error:
                for child in multiprocessing.active_children():
                    child.kill()
                if isinstance(error, KeyboardInterrupt):
                    done = sum(read_part(work, number) is not None for number in range(corpus.n_parts))
                    raise BadEnvironment(
                        f"interrupted after {done} of {corpus.n_parts} parts; the same command continues"
                    ) from None
                raise


def combine(corpus: Corpus, tokenizer: Tokenizer, parts: list[Part]) -> Meta:
    """meta.json of the whole."""
    return Meta(
        format=FORMAT,
        source=corpus.describe(),
        documents=sum(part.documents for part in parts),
        characters=sum(part.characters for part in parts),
        sha256=hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
        stamp=corpus.stamp(),
        tokenizer=corpus.config.tokenizer,
        tokenizer_sha256=tokenizers.fingerprint(tokenizer),
        vocab_size=len(tokenizer.tokens),
        dtype="uint16" if dtype_for(len(tokenizer.tokens)).itemsize == 2 else "uint32",
        splits={name: merge([part.splits[name] for part in parts]) for name in SPLITS},
    )


def merge(splits: list[SplitMeta]) -> SplitMeta:
    """One split over all parts."""
    return SplitMeta(
        documents=sum(one.documents for one in splits),
        bytes=sum(one.bytes for one in splits),
        tokens=sum(one.tokens for one in splits),
        shards=[shard for one in splits for shard in one.shards],
    )
