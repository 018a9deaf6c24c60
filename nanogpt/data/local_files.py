"""Find the files that `data.source` names: a single file, a folder with everything below it, or a glob.

Notes describe what is found and not read: hidden files, broken links, repeated files.
"""

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

from nanogpt.errors import BadData, one_line

NAMED = 3  # names in a note or an error; the others are counted


@dataclass(frozen=True)
class LocalFiles:
    """Files of a source, in the order in which they are read."""

    root: Path
    """The folder that the files' names are relative to."""
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    """Files left out or read in an unexpected way; one sentence each."""


class PathKind(Enum):
    """Paths that a user may not expect; the value begins their note."""

    BROKEN_LINK = "left out, links that lead nowhere"
    NOT_REGULAR = "left out, not regular files"
    LOOP = "left out, links to a folder that contains the source"
    REPEATED = "left out, links to files that are read already"
    NOT_ENTERED = "left out, folders that the glob names but doesn't enter (** does)"
    HIDDEN = "left out, hidden"
    LINKED_FOLDER = "read too, linked folders"


class FileSearch:
    """Files and other paths found so far."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[Path] = []
        self.others: defaultdict[PathKind, list[Path]] = defaultdict(list)

    def add(self, path: Path) -> None:
        """Record a path that is not a folder."""
        if path.is_file():
            self.files.append(path)
        else:
            broken = path.is_symlink() and not path.exists()
            self.others[PathKind.BROKEN_LINK if broken else PathKind.NOT_REGULAR].append(path)

    def notes(self) -> Iterator[str]:
        """Yield a sentence for each kind of path found."""
        for kind in PathKind:
            if paths := self.others[kind]:
                yield f"{kind.value}: {join_names(relative_name(path, self.root) for path in paths)}"


def find_files(source: str) -> LocalFiles:
    """Return the files that a path, a folder or a glob names, sorted by path. Raises BadData if there are none."""
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        raise BadData(f"data.source={one_line(source)}: no such user") from None
    try:
        search = search_source(path, source)
        search.files = remove_repeated(search)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in a name
        why = error.strerror if isinstance(error, OSError) else str(error)
        where = error.filename if isinstance(error, OSError) and error.filename else source
        raise BadData(f"data.source={one_line(source)}: {one_line(where)}: {one_line(why)}") from None
    if not search.files:
        notes = "; ".join(search.notes())
        raise BadData(f"data.source={one_line(source)}: no such file" + (f" ({notes})" if notes else ""))
    return LocalFiles(search.root, tuple(sorted(search.files)), tuple(search.notes()))


def search_source(path: Path, source: str) -> FileSearch:
    """Return everything that the source names. Raises BadData for a path that isn't a regular file; OSError."""
    if path.is_dir():
        return walk_folder(path)
    if path.exists() or path.is_symlink():
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "is a link that leads nowhere"
            raise BadData(f"data.source={one_line(source)}: {what}")
        search = FileSearch(path.parent)
        search.add(path)
        return search
    root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
    search, folders = FileSearch(root), list[Path]()
    for name in sorted(glob.glob(str(path), recursive=True)):
        if os.path.isdir(name):
            folders.append(Path(name))
        else:
            search.add(Path(name))
    entered = {parent for file in search.files for parent in file.parents}
    search.others[PathKind.NOT_ENTERED] = [path for path in folders if path not in entered and any(path.iterdir())]
    return search


def walk_folder(root: Path) -> FileSearch:
    """Return everything below a folder; linked folders are entered, unless they contain the folder itself."""
    search, pending, seen = FileSearch(root), [root], set[str]()
    while pending:
        start = pending.pop(0)
        if start != root:
            real = os.path.realpath(start)
            loops = os.path.realpath(root).startswith(real.rstrip("/") + "/")
            kind = PathKind.LOOP if loops else PathKind.REPEATED if real in seen else PathKind.LINKED_FOLDER
            search.others[kind].append(start)
            if kind != PathKind.LINKED_FOLDER:
                continue
        for name, folders, names in os.walk(start, onerror=raise_error):
            seen.add(os.path.realpath(name))
            folder = Path(name)
            hidden = [entry for entry in sorted([*folders, *names]) if entry.startswith(".")]
            search.others[PathKind.HIDDEN] += [folder / entry for entry in hidden]
            folders[:] = [entry for entry in sorted(folders) if not entry.startswith(".")]
            pending += [folder / entry for entry in folders if (folder / entry).is_symlink()]
            for entry in names:
                if not entry.startswith("."):
                    search.add(folder / entry)
    return search


def raise_error(error: OSError) -> NoReturn:
    """Raise the error for a folder that can't be listed, which `os.walk` would skip."""
    raise error


def remove_repeated(search: FileSearch) -> list[Path]:
    """Return each file once, by its own path where links lead to it too; record the others as repeated."""
    real_folder = cache(os.path.realpath)
    by_real_path: dict[str, list[tuple[bool, Path]]] = {}
    for path in search.files:
        real = os.path.realpath(path) if path.is_symlink() else os.path.join(real_folder(path.parent), path.name)
        through_link = real != os.path.join(real_folder(search.root), relative_name(path, search.root))
        by_real_path.setdefault(real, []).append((through_link, path))
    unique: list[Path] = []
    for same in by_real_path.values():
        first, *others = sorted(same)
        unique.append(first[1])
        search.others[PathKind.REPEATED] += [path for _, path in others]
    return unique


def relative_name(path: Path, root: Path) -> str:
    """Return a path relative to a folder, or the whole path if it is elsewhere."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def join_names(names: Iterable[str]) -> str:
    """Return the first names and the number of the others: `a, b, c and 5 more`."""
    listed = sorted(names)
    more = f" and {len(listed) - NAMED:,} more" if len(listed) > NAMED else ""
    return ", ".join(one_line(name) for name in listed[:NAMED]) + more


def file_size(path: Path) -> int:
    """Return a file's size in bytes. Raises BadData if it is gone."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise BadData(f"{one_line(path)}: {error.strerror}") from None
