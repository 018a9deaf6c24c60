"""Find the files that `data.source` names: one file, a folder with all that is in it, or a glob.

Whatever is there and isn't read is described in a note: hidden files, links that lead nowhere, repeated files.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from nanogpt.errors import BadData, one_line

NAMED = 3  # names in a note or an error; the rest are counted


@dataclass(frozen=True)
class LocalFiles:
    """The files of a source, in the order in which they are read."""

    root: Path
    """The folder that the files' names are relative to."""
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    """What was found and isn't read, or is read in an unexpected way; one sentence each."""


@dataclass
class SearchResult:
    """What a search has come across so far."""

    root: Path
    files: list[Path] = field(default_factory=list[Path])
    hidden: list[Path] = field(default_factory=list[Path])
    dead_links: list[Path] = field(default_factory=list[Path])
    not_regular: list[Path] = field(default_factory=list[Path])
    linked_folders: list[Path] = field(default_factory=list[Path])
    loops: list[Path] = field(default_factory=list[Path])
    folders: list[Path] = field(default_factory=list[Path])
    repeated: list[Path] = field(default_factory=list[Path])

    def add(self, path: Path) -> None:
        """Record a path that is not a folder."""
        if path.is_file():
            self.files.append(path)
        elif path.is_symlink() and not path.exists():
            self.dead_links.append(path)
        else:
            self.not_regular.append(path)

    def notes(self) -> Iterator[str]:
        """Yield one sentence for each kind of find that a user may not expect."""
        for paths, what in (
            (self.dead_links, "left out, links that lead nowhere"),
            (self.not_regular, "left out, not regular files"),
            (self.loops, "left out, links to a folder that contains the source"),
            (self.repeated, "left out, links to files that are read already"),
            (self.folders, "left out, folders that the glob names but doesn't enter (** does)"),
            (self.hidden, "left out, hidden"),
            (self.linked_folders, "read too, linked folders"),
        ):
            if paths:
                yield f"{what}: {join_names(relative_name(path, self.root) for path in paths)}"


def find_files(source: str) -> LocalFiles:
    """Return the files that a path, a folder or a glob names, sorted by path. Raises BadData if there are none."""
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        raise BadData(f"data.source={one_line(source)}: no such user") from None
    try:
        finds = search_source(path, source)
        finds.files = remove_repeated(finds)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in a name
        why = error.strerror if isinstance(error, OSError) else str(error)
        place = error.filename if isinstance(error, OSError) and error.filename else source
        raise BadData(f"data.source={one_line(source)}: {one_line(place)}: {one_line(why)}") from None
    if not finds.files:
        notes = "; ".join(finds.notes())
        raise BadData(f"data.source={one_line(source)}: no such file" + (f" ({notes})" if notes else ""))
    return LocalFiles(finds.root, tuple(sorted(finds.files)), tuple(finds.notes()))


def search_source(path: Path, source: str) -> SearchResult:
    """Return everything that the source names. Raises BadData for a single path that is no regular file, OSError."""
    if path.is_dir():
        return walk_folder(path)
    if path.exists() or path.is_symlink():
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "is a link that leads nowhere"
            raise BadData(f"data.source={one_line(source)}: {what}")
        return SearchResult(path.parent, [path])
    finds = SearchResult(Path(*parts_before_wildcard(path)))
    for name in sorted(glob.glob(str(path), recursive=True)):
        if os.path.isdir(name):
            finds.folders.append(Path(name))
        else:
            finds.add(Path(name))
    entered = {parent for one in finds.files for parent in one.parents}
    finds.folders = [folder for folder in finds.folders if folder not in entered and any(folder.iterdir())]
    return finds


def parts_before_wildcard(pattern: Path) -> list[str]:
    """Return the parts of a glob before the first one with a wildcard."""
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if re.search(r"[*?\[]", part):
            break
        parts.append(part)
    return parts


def walk_folder(root: Path) -> SearchResult:
    """Return what is below a folder; linked folders are entered, unless they contain the folder itself."""
    finds, pending, seen = SearchResult(root), [root], set[str]()
    while pending:
        start = pending.pop(0)
        if start != root:
            if os.path.realpath(root).startswith(os.path.realpath(start).rstrip("/") + "/"):
                finds.loops.append(start)
                continue
            if os.path.realpath(start) in seen:
                finds.repeated.append(start)
                continue
            finds.linked_folders.append(start)
        for name, folders, names in os.walk(start, onerror=raise_error):
            seen.add(os.path.realpath(name))
            folder = Path(name)
            finds.hidden += [folder / one for one in sorted([*folders, *names]) if one.startswith(".")]
            visible = [one for one in sorted(folders) if not one.startswith(".")]
            pending += [folder / one for one in visible if (folder / one).is_symlink()]
            folders[:] = visible
            for one in names:
                if not one.startswith("."):
                    finds.add(folder / one)
    return finds


def raise_error(error: OSError) -> NoReturn:
    """Stop at a folder that can't be listed, which `os.walk` would pass over."""
    raise error


def remove_repeated(finds: SearchResult) -> list[Path]:
    """Return each file once, by its own name where links lead to it too; the others are recorded as repeated."""
    real_root, real_folders = os.path.realpath(finds.root), dict[Path, str]()
    by_place: dict[str, list[tuple[bool, Path]]] = {}
    for path in finds.files:
        folder = real_folders.get(path.parent) or real_folders.setdefault(path.parent, os.path.realpath(path.parent))
        real = os.path.realpath(path) if path.is_symlink() else os.path.join(folder, path.name)
        through_link = real != os.path.join(real_root, relative_name(path, finds.root))
        by_place.setdefault(real, []).append((through_link, path))
    kept: list[Path] = []
    for found in by_place.values():
        first, *others = sorted(found)
        kept.append(first[1])
        finds.repeated += [path for _, path in others]
    return kept


def relative_name(path: Path, root: Path) -> str:
    """Return a path's name below a folder, or the whole path if it is elsewhere."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def join_names(names: Iterator[str] | Sequence[str]) -> str:
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
