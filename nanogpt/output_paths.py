"""Checks of output paths, made before hours of work."""

import os
import stat
from pathlib import Path

from nanogpt.errors import BadEnvironment, BadInput, one_line


def check_output_file(key: str, given: str | None, links: bool = True) -> None:
    """Check that a file can be written in a folder that exists or can be made. None is always allowed.

    A symbolic link is an error unless `links`. Raises BadInput, BadEnvironment; writes nothing.
    """
    if given is None:
        return
    what = f"{key}={one_line(given, 200)}"
    try:
        path = Path(os.path.realpath(given) if links else given)
        mode = path.lstat().st_mode if os.path.lexists(path) else None
    except (OSError, ValueError) as error:  # too long, with a NUL character, or a loop of links
        raise BadInput(f"{what}: not a path of a file: {one_line(error)}") from None
    if given in ("", ".", "..") or given.endswith(("/", "/.", "/..")) or (mode and stat.S_ISDIR(mode)):
        raise BadInput(f"{what}: a folder; name a file, e.g. {key}={one_line(Path(given) / 'results')}")
    if mode is None:
        check_can_be_created(what, path)
    elif stat.S_ISLNK(mode) or not (stat.S_ISREG(mode) or given.startswith("/dev/")):
        raise BadInput(f"{what}: not a regular file")
    elif not os.access(path, os.W_OK):
        raise BadEnvironment(f"{what}: can't be written: permission denied")


def check_output_folder(key: str, given: str | Path | None) -> None:
    """Check that files can be written in a folder that exists or can be made. None is always allowed.

    Raises BadInput, BadEnvironment; writes nothing.
    """
    if given is None:
        return
    what = f"{key}={one_line(given, 200)}"
    try:
        path = Path(os.path.realpath(given))
        there = os.path.lexists(path)
        if not str(given) or (there and not path.is_dir()):
            raise BadInput(f"{what}: not a folder")
    except (OSError, ValueError) as error:
        raise BadInput(f"{what}: not a path of a folder: {one_line(error)}") from None
    check_can_be_created(what, path / "file")


def check_can_be_created(what: str, path: Path) -> None:
    """Check the nearest folder above `path` that exists. Raises BadInput, BadEnvironment."""
    if len(os.fsencode(path.name)) > 255:
        raise BadInput(f"{what}: the name is too long")
    folder = next(parent for parent in path.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise BadInput(f"{what}: {one_line(folder)} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadEnvironment(f"{what}: nothing can be written in {one_line(folder)}: permission denied")
