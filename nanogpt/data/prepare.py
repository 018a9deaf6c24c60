"""Corpus -> tokenizer -> shards, over processes, part by part: an interrupted preparation continues where it was.

Everything is written to a hidden folder beside the final one, which appears by one rename when all of it is there.
"""

import multiprocessing
import os
import shlex
import shutil
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path

from nanogpt import tokenizer as tokenizers
from nanogpt.config import DataConfig
from nanogpt.console import TokenizeProgress
from nanogpt.data import corpora
from nanogpt.data.combine import build_meta, check_parts, check_windows, combine_digests
from nanogpt.data.content import is_token_folder
from nanogpt.data.corpora import BadRows, Corpus
from nanogpt.data.dataset import Dataset, check_source_digest, open_dataset, read_meta
from nanogpt.data.encode import (
    compute_part_digest,
    encode_part,
    encode_part_in_worker,
    read_part,
    resolve_separator,
    split_document,
    start_worker,
)
from nanogpt.data.folders import (
    FORMAT,
    find_dataset_folder,
    folder_by_path,
    is_prepared,
    preparation_signature,
    resolve_source,
    write_source_digest,
)
from nanogpt.data.local_files import file_size
from nanogpt.errors import BadData, BadEnvironment, one_line
from nanogpt.files import fsync, hold_lock, read_text, write_atomic
from nanogpt.output_paths import check_output_folder
from nanogpt.schema import to_json
from nanogpt.tokenizer import Tokenizer

SMALL_BYTES = 200 * 2**20  # train.py prepares local text up to this size by itself
BPE_CHARACTERS = 200_000_000  # a vocabulary is learned from this much text at most


def prepare_if_small(config: DataConfig, block_size: int | None = None) -> Dataset:
    """Return the data set, prepared now if it is small. Raises BadData with the command that prepares a large one."""
    check_prepared(config)
    return prepare(config, block_size=block_size)


def check_prepared(config: DataConfig) -> None:
    """Raise BadData for a large data set that isn't prepared, or sources that aren't there."""
    config = resolve_source(config)
    if is_token_folder(config.source) or is_prepared(find_dataset_folder(config)):
        return
    files = () if config.corpus == "hub" and config.source is None else find(config).files
    if (not files or sum(map(file_size, files)) > SMALL_BYTES) and not reuse_path_folder(config):
        raise BadData(f"{one_line(find_dataset_folder(config))}: not prepared; run: {prepare_command(config)}")


def describe_unprepared(config: DataConfig) -> list[str]:
    """Return what a plan says of data of the hub that isn't prepared; other data is found, or fetched, by itself."""
    if config.corpus != "hub" or config.source is not None or is_prepared(find_dataset_folder(config)):
        return []
    return [f"data    {one_line(find_dataset_folder(config))}: not prepared; run: {prepare_command(config)}"]


def prepare(config: DataConfig, overwrite: bool = False, block_size: int | None = None) -> Dataset:
    """Prepare unless it is done already, and open. Raises BadData, BadEnvironment.

    Data without a window of `block_size` tokens in each split (null: of one token and the next) is refused before it
    is put in place.
    """
    config = resolve_source(config)
    if is_token_folder(config.source):
        return open_dataset(config)
    folder = find_dataset_folder(config)
    if not is_prepared(folder) or overwrite:
        check_output_folder("data.dir", config.dir)
        corpus = find(config)
        check_source(corpus)  # complains before anything is created
        check_source_digest(config)
        with lock_work_folder(folder) as work:
            if overwrite or not (
                is_prepared(folder) or reuse_path_folder(config)
            ):  # another process may have been faster
                build_dataset(corpus, work, block_size)
                move_into_place(work, folder)
    return open_dataset(config)


def reuse_path_folder(config: DataConfig) -> bool:
    """Take over a folder that is named by the source's path, if it was made of this text. Returns whether it was.

    Times that differ don't count: a file that was touched or copied is not changed.
    """
    folder = folder_by_path(config)
    if config.source_sha256 is None or not is_made_from_source(folder, config):
        return False
    write_source_digest(folder, config)
    return True


def is_made_from_source(folder: Path, config: DataConfig) -> bool:
    """Whether a prepared folder was made of the text that the source holds, which is read in full. Raises BadData."""
    return is_prepared(folder) and compute_corpus_digest(find(config)) == read_meta(folder / "meta.json").sha256


@contextmanager
def lock_work_folder(folder: Path) -> Generator[Path, None, None]:
    """Lock the folder that a data set is prepared in; a refusal leaves nothing behind, an interruption leaves it.

    The finished parts of a hub data set are kept in both cases: they took long and are used again.
    """
    new = [parent for parent in (folder.parent, *folder.parent.parents) if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock, work = folder.parent / f".{folder.name}.lock", folder.parent / f".{folder.name}.partial"
    with hold_lock(lock, wait=True):
        try:
            yield work
        except BadData:
            if not any(work.glob("part-*.json")) or not read_plan(work).startswith("hub "):
                shutil.rmtree(work, ignore_errors=True)
            lock.unlink(missing_ok=True)
            with suppress(OSError):  # others use it
                for parent in new:
                    parent.rmdir()
            raise


def check_source(corpus: Corpus) -> None:
    """Raise BadData for files that can't be read, are of several kinds, or hold no text at all."""
    if corpus.files and not corpus.kinds.keys() - corpus.empty_files():
        raise BadData(f"data.source={one_line(corpus.config.source)}: there is no text in it")


def find(config: DataConfig) -> Corpus:
    return corpora.find_corpus(config, cache=Path(config.dir) / "downloads")


def prepare_command(config: DataConfig) -> str:
    """What to type to prepare this data set: what was typed about data, for the other door."""
    words = [shlex.quote(word) for word in sys.argv[1:] if word.startswith(("data=", "data."))]
    chosen = [] if any(word.startswith("data=") for word in words) else [f"data={config.name}"]
    return " ".join(["python prepare.py", *chosen, *words])


def build_dataset(corpus: Corpus, work: Path, block_size: int | None) -> None:
    """Tokenise every part, then describe the whole in meta.json. Raises BadData."""
    start_work(work, corpus)
    if not (work / "meta.json").exists():  # else killed just before it was put in its place
        tokenizer = load_or_build_tokenizer(corpus, work)
        encode_parts(corpus, tokenizer, work)
        if read_plan(work) != describe_plan(corpus):
            what = f"data.source={one_line(corpus.config.source)}: files changed while they were read"
            raise BadData(f"{what}; run it again")
        parts = [part for number in range(corpus.n_parts) if (part := read_part(work, number))]
        check_parts(corpus, parts)
        write_atomic(work / "meta.json", to_json(build_meta(corpus, tokenizer, parts)))
    check_windows(corpus.config, read_meta(work / "meta.json"), block_size)


def move_into_place(work: Path, folder: Path) -> None:
    """The finished work becomes the data set by one rename; an old one steps aside first and is deleted last."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(work, folder)
    fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
    for path in [*folder.glob("part-*.json"), folder / "plan"]:
        path.unlink(missing_ok=True)


def read_plan(work: Path) -> str:
    """Return what the work in a folder was begun for; "" if nothing was."""
    try:
        return read_text(work / "plan")
    except OSError:
        return ""


def start_work(work: Path, corpus: Corpus) -> None:
    """The working folder, emptied when it holds another source's or another configuration's work."""
    plan = describe_plan(corpus)
    if work.exists() and read_plan(work) != plan:
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    write_atomic(work / "plan", plan)


def describe_plan(corpus: Corpus) -> str:
    """Return what decides whether parts that are done can be used: choices, content, and the files as they are."""
    kind = "local" if corpus.files else "hub"
    return f"{kind} {FORMAT} {preparation_signature(corpus.config)} {corpus.n_parts} {corpus.stamp()}\n"


def load_or_build_tokenizer(corpus: Corpus, work: Path) -> Tokenizer:
    """The tokenizer, learned from the corpus where it must be, and kept."""
    if (work / tokenizers.FILE).exists():
        return tokenizers.load(work)
    config, bad_rows = corpus.config, BadRows()
    tokenizer = tokenizers.build(config.tokenizer, vocabulary_texts(corpus, bad_rows), config.vocab_size)
    if not tokenizer.tokens:
        why = f"; no row has a text, e.g. {one_line(bad_rows.first[0])}" if bad_rows.count else ""
        raise BadData(f"data.source={one_line(config.source)}: there is no text in it{why}")
    if config.vocab_size and len(tokenizer.tokens) < config.vocab_size:
        raise BadData(
            f"data.vocab_size={config.vocab_size}: the text is too small, it gives {len(tokenizer.tokens)} tokens"
        )
    write_atomic(work / tokenizers.FILE, tokenizers.to_json(tokenizer))
    return tokenizer


def vocabulary_texts(corpus: Corpus, bad_rows: BadRows) -> Iterator[str]:
    """Yield what a vocabulary is learned from: every character counts, but BPE learns from training text alone."""
    kind = corpus.config.tokenizer
    separator = resolve_separator(corpus.config, kind == "bpe")
    if kind == "char" and (corpus.separates_documents or separator):
        yield "\n"
    characters = 0
    for number in range(corpus.n_parts):
        for document in corpus.documents(number, bad_rows):
            for name, text in split_document(corpus, number, document, separator):
                if kind == "char" or name == "train":
                    yield from text.split(separator) if separator else [text]
                    characters += len(text)
            if kind == "bpe" and characters > BPE_CHARACTERS:
                return


def encode_parts(corpus: Corpus, tokenizer: Tokenizer, work: Path) -> None:
    """Tokenise the parts that are not done yet, here or over processes."""
    todo = [number for number in range(corpus.n_parts) if read_part(work, number) is None]
    workers = min(corpus.config.workers or os.cpu_count() or 1, len(todo))
    with TokenizeProgress(f"tokenising {corpus.config.name}", corpus.text_bytes(), parts=corpus.n_parts) as meter:
        meter.add_parts(corpus.n_parts - len(todo))
        if workers <= 1:
            for number in todo:
                encode_part(corpus, tokenizer, work, number, meter.add)
                meter.add_parts(1)
            return
        context = multiprocessing.get_context("spawn")
        shared = context.Array("q", 2)
        arguments = (corpus, tokenizer.spec(), work, shared)
        with ProcessPoolExecutor(workers, context, start_worker, arguments) as pool:
            try:
                futures = [pool.submit(encode_part_in_worker, number) for number in todo]
                for future in meter.as_completed(futures, shared):
                    future.result()
                    meter.add_parts(1)
            except BaseException as error:
                for child in multiprocessing.active_children():
                    child.kill()
                if isinstance(error, BrokenProcessPool):
                    raise BadEnvironment(
                        "a tokenising process was killed, probably for lack of memory; "
                        f"data.workers={max(1, workers // 2)} needs less, and the same command continues"
                    ) from None
                raise


def compute_corpus_digest(corpus: Corpus) -> str:
    """The digest that preparing this corpus would write to meta.json."""
    return combine_digests(compute_part_digest(corpus, number) for number in range(corpus.n_parts))
