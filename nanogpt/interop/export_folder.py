"""The folder of an export: checked before the model is read, written beside its place, renamed at the end.

export.json lists the files of an export with their sizes and digests. `overwrite=true` replaces a folder that still
holds exactly these files; everything else is refused, and no other file is ever deleted.
"""

import json
import os
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt.data.shards import file_sha256
from nanogpt.errors import BadData, BadEnvironment, BadInput, one_line
from nanogpt.files import fsync, read_json_bytes, write

MANIFEST = "export.json"


@dataclass(frozen=True)
class ExportFolder:
    """Where an export is written, and the files of the earlier export that it replaces."""

    path: Path
    replaced_files: frozenset[str] = frozenset()


def check_export_folder(
    out: Path, overwrite: bool, inside_run: Path | None, sources: Mapping[str, Path]
) -> ExportFolder:
    """Return the resolved folder. Raises BadInput unless it can be written without losing anything.

    `inside_run` is the one folder that may lie in a run directory; `sources` are files and folders that are read.
    """
    try:
        path = Path(os.path.realpath(out))
        here = Path.cwd().resolve()
        exists = os.path.lexists(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"out={one_line(out)}: not a path that can be used: {one_line(error)}") from None
    plain = ".." not in out.parts and path == Path(os.path.abspath(out))
    meant = f"out={one_line(out)}" if plain else f"out={one_line(out)} ({one_line(path)})"
    for what, place in {"the current folder": here, **sources}.items():
        place = Path(os.path.realpath(place))
        if path in (place, *place.parents):
            raise BadInput(f"{meant}: is or holds {what}; choose a new folder")
    for parent in path.parents:
        if (parent / "checkpoints").is_dir() and (parent / "config.json").exists() and path != inside_run:
            raise BadInput(
                f"{meant}: lies in the run directory {one_line(parent)}; choose a folder outside it, or out=null"
            )
        if os.path.lexists(parent) and not parent.is_dir():
            raise BadInput(f"{meant}: {one_line(parent)} is a file")
    if not exists:
        return ExportFolder(path)
    if not path.is_dir():
        raise BadInput(f"{meant}: exists, and isn't a folder")
    if not (names := os.listdir(path)):
        return ExportFolder(path)
    check_unchanged_export(path, set(names), meant)
    if not overwrite:
        raise BadInput(f"{meant}: exists; overwrite=true replaces it")
    return ExportFolder(path, frozenset(names))


def check_unchanged_export(path: Path, names: set[str], meant: str) -> None:
    """Raise BadInput unless a folder holds what export.json lists, unchanged, and nothing else."""
    try:
        files: Any = read_json_bytes(path / MANIFEST)["files"]
        listed = {str(name): str(entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{meant}: exists, and isn't an export that could be replaced: it has no {MANIFEST}") from None
    if other := sorted(names ^ (listed.keys() | {MANIFEST})):
        what = "isn't of the export" if other[0] in names else "is missing"
        raise BadInput(f"{meant}: exists, and isn't an export that could be replaced: {one_line(other[0])} {what}")
    for name, digest in listed.items():
        with suppress(BadData):
            if not (path / name).is_symlink() and file_sha256(path / name) == digest:
                continue
        raise BadInput(
            f"{meant}: exists, and {one_line(name)} was changed since the export; remove the folder yourself"
        )


@contextmanager
def stage_export(folder: ExportFolder, about: dict[str, Any]) -> Generator[Path, None, None]:
    """Yield a new folder beside the export's place, and rename it there when the block ends without an error.

    On an error nothing is left and what was there stays. Raises BadEnvironment, BadInput.
    """
    path, token = folder.path, secrets.token_hex(4)
    partial = path.with_name(f".{path.name}.partial-{token}")
    made: list[Path] = []
    try:
        for parent in reversed([parent for parent in path.parents if not parent.exists()]):
            parent.mkdir(exist_ok=True)
            made.append(parent)
        partial.mkdir()
        yield partial
        write_manifest(partial, about)
        move_into_place(partial, folder, path.with_name(f".{path.name}.replaced-{token}"))
        made.clear()
    except OSError as error:
        raise BadEnvironment(f"{one_line(path)}: can't be written: {error.strerror or one_line(error)}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            for parent in reversed(made):
                parent.rmdir()


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Write export.json over all files of a folder, and force all of them to disk."""
    files: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.iterdir()):
        fsync(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    write(folder / MANIFEST, json.dumps(about | {"files": files}, indent=1) + "\n")
    fsync(folder)


def move_into_place(partial: Path, folder: ExportFolder, aside: Path) -> None:
    """Rename the new folder to its place, then delete the files of the export that was there.

    Raises OSError where something else is there now, BadInput where somebody added to the earlier export.
    """
    if not folder.replaced_files:
        os.rename(partial, folder.path)
        fsync(folder.path.parent)
        return
    os.rename(folder.path, aside)
    try:
        if frozenset(os.listdir(aside)) != folder.replaced_files:
            raise BadInput(f"out={one_line(folder.path)}: was changed while the export was written")
        os.rename(partial, folder.path)
    except (OSError, BadInput):
        os.rename(aside, folder.path)
        raise
    fsync(folder.path.parent)
    for name in folder.replaced_files:
        (aside / name).unlink()
    aside.rmdir()
