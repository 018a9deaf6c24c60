"""Assign files to training and validation by their names.

`train-00000-of-00001.parquet`, `wiki.valid.tokens`, `dev/a.txt`: the first or last word of the name of a file or of one
of its folders names the split; a word inside (`c4_train_shard_00.jsonl`) counts only if every file has one. Test files
are left out. If no name has a split, `data.val_fraction` divides the text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from nanogpt.data.file_kinds import strip_endings
from nanogpt.data.local_files import LocalFiles, join_names, relative_name
from nanogpt.errors import BadData

NamedSplit = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[NamedSplit, ...] = ("train", "val", "test")
WORDS: dict[str, NamedSplit] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "eval": "test",
}
MORE_WORDS: dict[str, NamedSplit] = {  # common in other names too: they count only if every file has one
    **dict.fromkeys(("training", "trainset", "traindata"), "train"),
    **dict.fromkeys(("validate", "validating", "valset", "devset", "valdata"), "val"),
    **dict.fromkeys(("testing", "testset", "testdata", "evaluation", "holdout", "heldout"), "test"),
}
NUMBERING = re.compile(r"[-_. ]*\d+([-_ ]of[-_ ]\d+)?$")
REMEDY = "choose files with a glob, or give data.split=val_fraction to divide all of them by data.val_fraction"


@dataclass(frozen=True)
class SplitFiles:
    """Files of a source, by split."""

    train: tuple[Path, ...]
    val: tuple[Path, ...] = ()
    """Empty if no file is named for validation: a fraction of the training text is held out."""
    notes: tuple[str, ...] = ()


def divide_by_names(source: LocalFiles) -> SplitFiles:
    """Return the files of each split.

    Raises BadData if only some files are named for a split, if a file is named for two, or if none is for training.
    """
    relatives = {path: relative_name(path, source.root) for path in source.files}
    splits = {path: splits_in_name(name) for path, name in relatives.items()}
    if not any(splits.values()):  # words inside names count if every file has one and they differ
        inside = {path: splits_in_name(name, inside=True) for path, name in relatives.items()}
        if all(len(found) == 1 for found in inside.values()) and len(set(map(tuple, inside.values()))) > 1:
            splits = inside
    files = {name: tuple(path for path in source.files if name in splits[path]) for name in SPLIT_NAMES}
    names = [name for name in files if files[name]]
    if len(source.files) == 1 or not names:
        return SplitFiles(source.files)
    if twice := [path for path in source.files if len(splits[path]) > 1]:
        raise BadData(f"files named for two splits: {describe_files(twice, source.root)}; {REMEDY}")
    if unnamed := [path for path in source.files if not splits[path]]:
        listed = "; ".join(f"{name}: {describe_files(files[name], source.root)}" for name in names)
        others = describe_files(unnamed, source.root)
        raise BadData(f"some files are named for a split and others are not ({listed}; not: {others}); {REMEDY}")
    if len(names) == 1:
        note = f"all files are named for the {names[0]} split; they are used for training"
        return SplitFiles(source.files, notes=() if names == ["train"] else (note,))
    if not files["train"]:
        raise BadData(f"no file is named for training, but for {' and '.join(names)}; {REMEDY}")
    notes = {
        "test": "left out, test files by their names",
        "val": "validation files by their names, data.val_fraction isn't used",
    }
    noted = [f"{note}: {describe_files(files[name], source.root)}" for name, note in notes.items() if files[name]]
    return SplitFiles(files["train"], files["val"], tuple(noted))


def splits_in_name(name: str, inside: bool = False) -> set[NamedSplit]:
    """Return the splits that a relative path is named for; several contradict each other.

    The first and the last word of each part count; with `inside` all words do, also those of `TrainSet` and MORE_WORDS.
    """
    *folders, file = PurePath(name).parts
    known = WORDS | MORE_WORDS if inside else WORDS
    words: set[str] = set()
    for part in (*folders, strip_endings(file)):
        plain = NUMBERING.sub("", part)
        separated = re.split(r"[\W\d_]+", plain.casefold())
        words |= {separated[0], separated[-1]}
        if inside:
            words |= {*separated, *re.split(r"[\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", plain).casefold())}
    return {known[word] for word in words if word in known}


def describe_files(files: Sequence[Path], root: Path) -> str:
    """Return `2 (a.txt, b.txt)`."""
    return f"{len(files):,} ({join_names([relative_name(path, root) for path in files])})"
