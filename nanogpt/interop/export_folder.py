"""Check the folder of an export before the model is read, write it beside the final path, and rename it at the end.

export.json lists the files of an export with their sizes and digests. `overwrite=true` replaces a folder that holds
exactly these files; any other folder is refused, and no other file is deleted.
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
from nanogpt.files import fsync, read_json_bytes, write_file

MANIFEST = "export.json"


@dataclass(frozen=True)
class ExportFolder:
    """Path of an export, and the files of the earlier export that it replaces."""

    path: Path
    replaced_files: frozenset[str] = frozenset()


def check_export_folder(
    out: Path, overwrite: bool, inside_run: Path | None, sources: Mapping[str, Path]
) -> ExportFolder:
    """Return the resolved folder. Raises BadInput if writing it could delete or replace other files.

    `inside_run` is the only folder allowed in a run directory; `sources` are the files and folders that are read.
    """
    try:
        path = Path(os.path.realpath(out))
        current = Path.cwd().resolve()
        exists = os.path.lexists(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"out={one_line(out)}: not a path that can be used: {one_line(error)}") from None
    plain = ".." not in out.parts and path == Path(os.path.abspath(out))
    setting = f"out={one_line(out)}" if plain else f"out={one_line(out)} ({one_line(path)})"
    for what, source in {"the current folder": current, **sources}.items():
        source = Path(os.path.realpath(source))
        if path in (source, *source.parents):
            raise BadInput(f"{setting}: is or holds {what}; choose a new folder")
    for parent in path.parents:
        if (parent / "checkpoints").is_dir() and (parent / "config.json").exists() and path != inside_run:
            raise BadInput(f"{setting}: lies in the run directory {one_line(parent)}; choose another, or out=null")
        if os.path.lexists(parent) and not parent.is_dir():
            raise BadInput(f"{setting}: {one_line(parent)} is a file")
    if exists and not path.is_dir():
        raise BadInput(f"{setting}: exists, and isn't a folder")
    names = frozenset(os.listdir(path) if exists else ())
    if names:
        check_unchanged_export(path, names, setting)
    if names and not overwrite:
        raise BadInput(f"{setting}: exists; overwrite=true replaces it")
    return ExportFolder(path, names)


def check_unchanged_export(path: Path, names: frozenset[str], setting: str) -> None:
    """Raise BadInput unless a folder holds exactly the files that export.json lists, unchanged."""
    try:
        files: Any = read_json_bytes(path / MANIFEST)["files"]
        listed = {str(name): str(entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{setting}: exists, and isn't an export that could be replaced: it has no {MANIFEST}") from None
    if other := sorted(names ^ (listed.keys() | {MANIFEST})):
        what = "isn't of the export" if other[0] in names else "is missing"
        raise BadInput(f"{setting}: exists, and isn't an export that could be replaced: {one_line(other[0])} {what}")
    for name, digest in listed.items():
        with suppress(BadData):
            if not (path / name).is_symlink() and file_sha256(path / name) == digest:
                continue
        raise BadInput(f"{setting}: exists, and {one_line(name)} was changed since the export; delete the folder first")


@contextmanager
def stage_export(folder: ExportFolder, about: dict[str, Any]) -> Generator[Path, None, None]:
    """Yield a new folder beside the export's path, and rename it to that path if the block ends without an error.

    On an error the new folder is deleted and an earlier export stays. Raises BadEnvironment, BadInput.
    """
    path, token = folder.path, secrets.token_hex(4)
    partial = path.with_name(f".{path.name}.partial-{token}")
    created: list[Path] = []
    try:
        for parent in reversed([parent for parent in path.parents if not parent.exists()]):
            parent.mkdir(exist_ok=True)
            created.append(parent)
        partial.mkdir()
        yield partial
        write_manifest(partial, about)
        move_into_place(partial, folder, path.with_name(f".{path.name}.replaced-{token}"))
        created.clear()
    except OSError as error:
        raise BadEnvironment(f"{one_line(path)}: can't be written: {error.strerror or one_line(error)}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            for parent in reversed(created):
                parent.rmdir()


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Write export.json with the size and digest of every file of a folder, and sync all of them to disk."""
    files: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.iterdir()):
        fsync(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    write_file(folder / MANIFEST, json.dumps(about | {"files": files}, indent=1) + "\n")
    fsync(folder)


def move_into_place(partial: Path, folder: ExportFolder, aside: Path) -> None:
    """Rename the new folder to the export's path, then delete the files of the earlier export.

    Raises OSError if something else has appeared at the path, BadInput if files were added to the earlier export.
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
