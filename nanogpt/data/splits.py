"""Which files are for training and which for validation, where their names say so.

`train-00000-of-00001.parquet`, `wiki.valid.tokens`, `dev/a.txt`: the first or last word of the name of a file or of one
of its folders; a word inside (`c4_train_shard_00.jsonl`) only where each file has one. Files for testing are left out.
Where no name says anything, `data.val_fraction` divides the text.
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
MORE_WORDS: dict[str, NamedSplit] = {  # common in other names too: they count where each file has one
    **dict.fromkeys(("training", "trainset", "traindata"), "train"),
    **dict.fromkeys(("validate", "validating", "valset", "devset", "valdata"), "val"),
    **dict.fromkeys(("testing", "testset", "testdata", "evaluation", "holdout", "heldout"), "test"),
}
NUMBERING = re.compile(r"[-_. ]*\d+([-_ ]of[-_ ]\d+)?$")
REMEDY = "choose files with a glob, or divide all of them by data.val_fraction with data.split=val_fraction"


@dataclass(frozen=True)
class SplitFiles:
    """The files of a source by the split that they are for."""

    train: tuple[Path, ...]
    val: tuple[Path, ...] = ()
    """Empty if no file is named for validation: a share of the training files is held out."""
    notes: tuple[str, ...] = ()


def divide_by_names(source: LocalFiles) -> SplitFiles:
    """Return the files of each split. Raises BadData if only some names say one, if one says two, or none `train`."""
    relatives = {path: relative_name(path, source.root) for path in source.files}
    said = {path: splits_in_name(name) for path, name in relatives.items()}
    if not any(said.values()):  # words inside names count where they tell all files apart
        inside = {path: splits_in_name(name, inside=True) for path, name in relatives.items()}
        if all(len(found) == 1 for found in inside.values()) and len(set(map(tuple, inside.values()))) > 1:
            said = inside
    files = {name: tuple(path for path in source.files if name in said[path]) for name in SPLIT_NAMES}
    names = [name for name in files if files[name]]
    if len(source.files) == 1 or not names:
        return SplitFiles(source.files)
    if twice := [path for path in source.files if len(said[path]) > 1]:
        raise BadData(f"files named for two splits: {describe_files(twice, source.root)}; {REMEDY}")
    if unnamed := [path for path in source.files if not said[path]]:
        listed = "; ".join(f"{name}: {describe_files(files[name], source.root)}" for name in names)
        others = describe_files(unnamed, source.root)
        raise BadData(f"some files are named for a split and others are not ({listed}; not: {others}); {REMEDY}")
    if len(names) == 1:
        note = f"all files are named for the {names[0]} split and are trained on all the same"
        return SplitFiles(source.files, notes=() if names == ["train"] else (note,))
    if not files["train"]:
        raise BadData(f"no file is named for training, but for {' and '.join(names)}; {REMEDY}")
    notes = (
        [f"left out, test files by their names: {describe_files(files['test'], source.root)}"] if files["test"] else []
    )
    if files["val"]:
        listed = describe_files(files["val"], source.root)
        notes.append(f"validation files by their names, data.val_fraction isn't used: {listed}")
    return SplitFiles(files["train"], files["val"], tuple(notes))


def splits_in_name(name: str, inside: bool = False) -> set[NamedSplit]:
    """Return the splits that a relative path is named for: none, one, or several that contradict each other.

    The first and the last word of each part count, with `inside` all of them, those of TrainSet and more words.
    """
    *folders, file = PurePath(name).parts
    known = WORDS | MORE_WORDS if inside else WORDS
    words: set[str] = set()
    for part in (*folders, strip_endings(file)):
        plain = NUMBERING.sub("", part)
        cut = re.split(r"[\W\d_]+", plain.casefold())
        words |= {cut[0], cut[-1]}
        if inside:
            words |= {*cut, *re.split(r"[\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", plain).casefold())}
    return {known[word] for word in words if word in known}


def describe_files(files: Sequence[Path], root: Path) -> str:
    """Return `2 (a.txt, b.txt)`."""
    return f"{len(files):,} ({join_names([relative_name(path, root) for path in files])})"
