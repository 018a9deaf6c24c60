"""Corpus -> tokenizer -> shards, over processes, part by part: an interrupted preparation continues where it was.

Everything is written to a hidden folder beside the final one, which appears by one rename when all of it is there.
"""

import hashlib
import multiprocessing
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
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
from nanogpt.data.encode import SPLITS, Part, encode_part, part_digest, read_part, split, start_worker, work_part
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
    refuse_unprepared(config)
    return prepare(config)


def refuse_unprepared(config: DataConfig) -> None:
    """Raises BadData for a large data set that isn't prepared, or sources that aren't there."""
    folder = folder_of(config)
    if not is_token_folder(config.source) and not (folder / "meta.json").exists():
        files = () if config.corpus == "hub" and config.source is None else find(config).files
        if not files or sum(path.stat().st_size for path in files) > SMALL_BYTES:
            raise BadData(f"{escaped(folder)}: not prepared; run: {command(config)}")


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
                work = folder.parent / f".{folder.name}.partial"
                try:
                    build(corpus, work)
                except BadData:
                    if corpus.n_parts == 1:  # nothing that is worth continuing
                        shutil.rmtree(work, ignore_errors=True)
                    raise
                put_in_place(work, folder)
    refuse_stale(config, folder)
    return open_dataset(config)


def find(config: DataConfig) -> Corpus:
    return corpora.find(config, cache=Path(config.dir) / "downloads")


def command(config: DataConfig) -> str:
    """What to type to prepare this data set: what was typed about data, for the other door."""
    words = [shlex.quote(word) for word in sys.argv[1:] if word.startswith(("data=", "data."))]
    chosen = [] if any(word.startswith("data=") for word in words) else [f"data={config.name}"]
    return " ".join(["python prepare.py", *chosen, *words])


def refuse_stale(config: DataConfig, folder: Path) -> None:
    """The files that were prepared are still what they were, where they are still there."""
    if config.source is None:
        return
    try:
        corpus = find(config)
    except BadData:
        return  # prepared elsewhere and brought here
    meta = read_meta(folder / "meta.json")
    if corpus.stamp() != meta.stamp and text_digest(corpus) != meta.sha256:  # touched is not changed
        raise BadData(
            f"data.source={escaped(config.source)}: files changed since they were prepared; "
            f"run: {command(config)} overwrite=true"
        )


def build(corpus: Corpus, work: Path) -> None:
    """Tokenise every part, then describe the whole in meta.json."""
    begin(work, corpus)
    if (work / "meta.json").exists():
        return  # killed just before it was put in its place
    tokenizer = fitted(corpus, work)
    encode_parts(corpus, tokenizer, work)
    parts = [read_part(work, number) for number in range(corpus.n_parts)]
    meta = combine(corpus, tokenizer, [part for part in parts if part])
    for name in SPLITS:
        if meta.splits[name].tokens == 0:
            why = f"the {name} split of {meta.documents} documents is empty"
            raise BadData(f"data.val_fraction={corpus.config.val_fraction}: {why}; choose another share or more text")
    write_atomic(work / "meta.json", to_json(meta))


def put_in_place(work: Path, folder: Path) -> None:
    """The finished work becomes the data set by one rename; an old one steps aside first and is deleted last."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(work, folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
    for path in [*folder.glob("part-*.json"), folder / "plan"]:
        path.unlink(missing_ok=True)


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
    if not tokenizer.tokens:
        raise BadData(f"data.source={escaped(config.source)}: there is no text in it")
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
                if isinstance(error, BrokenProcessPool):
                    raise BadEnvironment(
                        "a tokenising process was killed, probably for lack of memory; "
                        f"data.workers={max(1, workers // 2)} needs less, and the same command continues"
                    ) from None
                raise


def combine(corpus: Corpus, tokenizer: Tokenizer, parts: list[Part]) -> Meta:
    """meta.json of the whole."""
    return Meta(
        format=FORMAT,
        source=corpus.describe(),
        documents=sum(part.documents for part in parts),
        characters=sum(part.characters for part in parts),
        sha256=joint_digest(part.sha256 for part in parts),
        stamp=corpus.stamp(),
        tokenizer=corpus.config.tokenizer,
        tokenizer_sha256=tokenizers.fingerprint(tokenizer),
        vocab_size=len(tokenizer.tokens),
        dtype="uint16" if dtype_for(len(tokenizer.tokens)).itemsize == 2 else "uint32",
        splits={name: merge([part.splits[name] for part in parts]) for name in SPLITS},
    )


def joint_digest(parts: Iterable[str]) -> str:
    """The digest of all text from the digests of its parts."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def text_digest(corpus: Corpus) -> str:
    """The digest that preparing this corpus would write to meta.json."""
    return joint_digest(part_digest(corpus, number) for number in range(corpus.n_parts))


def merge(splits: list[SplitMeta]) -> SplitMeta:
    """One split over all parts."""
    return SplitMeta(
        documents=sum(one.documents for one in splits),
        bytes=sum(one.bytes for one in splits),
        tokens=sum(one.tokens for one in splits),
        shards=[shard for one in splits for shard in one.shards],
    )
