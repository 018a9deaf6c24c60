"""Prepare a data set: corpus -> tokenizer -> shards, in several processes.

Everything is written to a hidden folder beside the final one and renamed when complete. An interrupted preparation
continues with the first part that isn't finished.
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
from itertools import pairwise
from pathlib import Path

from nanogpt import tokenizer as tokenizers
from nanogpt.config import DataConfig, PrepareConfig
from nanogpt.console import format_command
from nanogpt.data.combine import build_meta, check_parts, check_windows, combine_digests
from nanogpt.data.content import token_folder
from nanogpt.data.corpora import BadRows, Corpus, find_corpus
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
from nanogpt.progress import TokenizeProgress
from nanogpt.schema import to_json
from nanogpt.tokenizer import Tokenizer

FOLDER_WORDS = ("--config-dir", "-cd", "hydra.searchpath=")  # name the user's folders with YAML files
SMALL_BYTES = 200 * 2**20  # train.py prepares local text up to this size itself
BPE_CHARACTERS = 200_000_000  # a vocabulary is trained on at most this much text


def prepare_data(config: PrepareConfig) -> int:
    """Run `prepare.py`: prepare the data set unless that is done already, describe it, and return 0."""
    dataset = prepare(config.data, config.overwrite)
    print(f"{dataset.folder}\n{dataset.description}\nfingerprint {dataset.fingerprint}")
    for note in dataset.notes:
        print(f"note: {note}")
    return 0


def prepare_if_small(config: DataConfig, block_size: int | None = None) -> Dataset:
    """Return the data set; prepare it first if it is small. Raises BadData with the command for a large one."""
    check_prepared(config)
    return prepare(config, block_size=block_size)


def check_prepared(config: DataConfig) -> None:
    """Raise BadData if the data set is large and not prepared, or its source doesn't exist."""
    config = resolve_source(config)
    if token_folder(config) or is_prepared(find_dataset_folder(config)):
        return
    files = () if config.corpus == "hub" and config.source is None else find_corpus(config).files
    if (not files or sum(map(file_size, files)) > SMALL_BYTES) and not reuse_path_folder(config):
        raise BadData(describe_unprepared(config))


def describe_unprepared(config: DataConfig) -> str:
    """Return the folder of a data set that isn't prepared, and the command that prepares it."""
    given = ("data=", "data.", *FOLDER_WORDS)
    words = [shlex.quote(w) for last, w in pairwise(sys.argv) if w.startswith(given) or last in FOLDER_WORDS]
    chosen = [] if any(word.startswith("data=") for word in words) else [f"data={config.name}"]
    command = " ".join([format_command("prepare"), *chosen, *words])
    return f"{one_line(find_dataset_folder(config))}: not prepared; run: {command}"


def describe_unprepared_hub(config: DataConfig) -> list[str]:
    """Return a dry run's line for hub data that isn't prepared; other data is found or downloaded at the start."""
    if config.corpus != "hub" or config.source is not None or is_prepared(find_dataset_folder(config)):
        return []
    return [f"data    {describe_unprepared(config)}"]


def prepare(config: DataConfig, overwrite: bool = False, block_size: int | None = None) -> Dataset:
    """Return the data set; prepare it first unless that is done already. Raises BadData, BadEnvironment.

    Nothing is kept of data without a window of `block_size` tokens in each split (null: of one token and the next).
    """
    config = resolve_source(config)
    if token_folder(config):
        return open_dataset(config)
    folder = find_dataset_folder(config)
    if not is_prepared(folder) or overwrite:
        check_output_folder("data.dir", config.dir)
        corpus = find_corpus(config)
        if corpus.files and not corpus.kinds.keys() - corpus.empty_files():
            raise corpus.no_text_error()
        check_source_digest(config)
        with lock_work_folder(folder) as work:
            if overwrite or not (is_prepared(folder) or reuse_path_folder(config)):  # not done by another process
                build_dataset(corpus, work, block_size)
                move_into_place(work, folder)
    return open_dataset(config)


def reuse_path_folder(config: DataConfig) -> bool:
    """Use a folder that is named by the source's path if it was made from the same text; return whether it was.

    Modification times don't count: a file that was touched or copied is unchanged.
    """
    folder = folder_by_path(config)
    if config.source_sha256 is None or not is_made_from_source(folder, config):
        return False
    write_source_digest(folder, config)
    return True


def is_made_from_source(folder: Path, config: DataConfig) -> bool:
    """Return whether a folder was prepared from the text of the source, which is read in full. Raises BadData."""
    if not is_prepared(folder):
        return False
    corpus = find_corpus(config)
    digest = combine_digests(compute_part_digest(corpus, number) for number in range(len(corpus.parts)))
    return digest == read_meta(folder / "meta.json").sha256


@contextmanager
def lock_work_folder(folder: Path) -> Generator[Path, None, None]:
    """Lock and yield the folder in which a data set is prepared. BadData removes it, an interruption keeps it.

    The finished parts of a hub data set are always kept: they took long and are used again.
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
            with suppress(OSError):  # other data sets may be in it
                for parent in new:
                    parent.rmdir()
            raise


def build_dataset(corpus: Corpus, work: Path, block_size: int | None) -> None:
    """Tokenize every part and write meta.json. Raises BadData."""
    start_work(work, corpus)
    if not (work / "meta.json").exists():  # it exists after a kill just before the rename
        tokenizer = load_or_build_tokenizer(corpus, work)
        encode_parts(corpus, tokenizer, work)
        if read_plan(work) != describe_plan(corpus):
            what = f"data.source={one_line(corpus.config.source)}: files changed while they were read"
            raise BadData(f"{what}; run it again")
        parts = [part for number in range(len(corpus.parts)) if (part := read_part(work, number))]
        check_parts(corpus, parts)
        write_atomic(work / "meta.json", to_json(build_meta(corpus, tokenizer, parts)))
    check_windows(corpus.config, read_meta(work / "meta.json"), block_size)


def move_into_place(work: Path, folder: Path) -> None:
    """Rename the finished work folder to the data set's; an old one is renamed first and deleted last."""
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
    """Return the plan of the work in a folder, or ""."""
    try:
        return read_text(work / "plan")
    except OSError:
        return ""


def start_work(work: Path, corpus: Corpus) -> None:
    """Create the work folder; empty it first if its plan is another."""
    plan = describe_plan(corpus)
    if work.exists() and read_plan(work) != plan:
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    write_atomic(work / "plan", plan)


def describe_plan(corpus: Corpus) -> str:
    """Return what finished parts depend on: the choices, the number of parts, and the stamp of the files."""
    kind = "local" if corpus.files else "hub"
    return f"{kind} {FORMAT} {preparation_signature(corpus.config)} {len(corpus.parts)} {corpus.stamp()}\n"


def load_or_build_tokenizer(corpus: Corpus, work: Path) -> Tokenizer:
    """Return the tokenizer saved in the work folder, or build it, from the corpus if needed, and save it."""
    if (work / tokenizers.FILE).exists():
        return tokenizers.load(work)
    config, bad_rows = corpus.config, BadRows()
    tokenizer = tokenizers.build(config.tokenizer, vocabulary_texts(corpus, bad_rows), config.vocab_size)
    if not tokenizer.tokens:
        raise corpus.no_text_error(bad_rows.first)
    if config.vocab_size and len(tokenizer.tokens) < config.vocab_size:
        raise BadData(
            f"data.vocab_size={config.vocab_size}: the text is too small, it gives {len(tokenizer.tokens)} tokens"
        )
    write_atomic(work / tokenizers.FILE, tokenizers.to_json(tokenizer))
    return tokenizer


def vocabulary_texts(corpus: Corpus, bad_rows: BadRows) -> Iterator[str]:
    """Yield the texts that a vocabulary is built from: all text for characters, only training text for BPE."""
    kind = corpus.config.tokenizer
    separator = resolve_separator(corpus.config, kind == "bpe")
    if kind == "char" and (corpus.separates_documents or separator):
        yield "\n"
    characters = 0
    for number in range(len(corpus.parts)):
        for document in corpus.documents(number, bad_rows):
            for name, text in split_document(corpus, number, document, separator):
                if kind == "char" or name == "train":
                    yield from text.split(separator) if separator else [text]
                    characters += len(text)
            if kind == "bpe" and characters > BPE_CHARACTERS:
                return


def encode_parts(corpus: Corpus, tokenizer: Tokenizer, work: Path) -> None:
    """Tokenize the parts that aren't finished, in this process or several."""
    todo = [number for number in range(len(corpus.parts)) if read_part(work, number) is None]
    workers = min(corpus.config.workers or os.cpu_count() or 1, len(todo))
    with TokenizeProgress(f"tokenizing {corpus.config.name}", corpus.text_bytes(), parts=len(corpus.parts)) as meter:
        meter.add_parts(len(corpus.parts) - len(todo))
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
                        "a tokenizing process was killed, probably for lack of memory; "
                        f"data.workers={max(1, workers // 2)} needs less, and the same command continues"
                    ) from None
                raise
