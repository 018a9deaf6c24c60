"""Tell a run from a copy of its folder: which run it is, where it lies, and which run it was forked from.

A folder that was moved is the same run. A copy whose original is there, or may be on another machine, is a fork: it
gets an id of its own, so that two runs never write to one run of a tracker.
"""

import hashlib
import json
import os
import socket
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from nanogpt.files import read_json_bytes, write_atomic
from nanogpt.schema import ConfigModel, to_json

FILE = "origin.json"


class ParentRun(ConfigModel):
    """The run that a run was forked from."""

    id: str
    path: str
    step: int


class Origin(ConfigModel):
    """A run's id for good, and where its folder was at its last start."""

    model_config = ConfigDict(extra="ignore")

    id: Annotated[str, Field(pattern=r"^[0-9a-z]{12}$")]
    path: str
    inode: int
    device: int
    host: str
    forked_from: ParentRun | None = None


def read_origin(path: Path) -> Origin | None:
    """Return what a run directory notes of its origin; None where it doesn't."""
    try:
        return Origin.model_validate(read_json_bytes(path / FILE))
    except (OSError, ValueError, ValidationError):
        return None


def get_run_id(path: Path, born: Mapping[str, Any]) -> str:
    """Return a run's id; `born` is its first start, from which the id of an older run follows."""
    origin = read_origin(path)
    return origin.id if origin else derive_run_id(path, born)


def derive_run_id(path: Path, born: Mapping[str, Any]) -> str:
    """Twelve digits that this run has for good, and that a later run in a folder of the same name hasn't.

    A tracker drops the steps it has already, so a run that was deleted and made again must be another one to it.
    """
    facts = {key: born.get(key) for key in ("time", "host", "pid")}
    return hashlib.sha256(json.dumps([path.name, facts]).encode()).hexdigest()[:12]


def write_origin(path: Path, run_id: str, parent: ParentRun | None) -> Origin:
    """Note in a run directory which run it is and where it lies. Raises OSError."""
    here, host = path.resolve(), socket.gethostname()
    inode, device = here.stat().st_ino, here.stat().st_dev
    origin = Origin(id=run_id, path=str(here), inode=inode, device=device, host=host, forked_from=parent)
    write_atomic(path / FILE, to_json(origin))
    return origin


def update_origin(path: Path, born: Mapping[str, Any], step: int) -> tuple[Origin, bool]:
    """Return which run a directory is, noted there, and whether it has just become a fork, at `step`, because it is
    a copy. What the original had with trackers is set aside. Raises OSError.
    """
    known = read_origin(path)
    if known is None:
        return write_origin(path, derive_run_id(path, born) if born else new_id(), None), False
    if not is_copy(known, path):
        return write_origin(path, known.id, known.forked_from), False
    for name in ("wandb.json", "wandb"):
        with suppress(FileNotFoundError):
            os.replace(path / name, path / f".copied-{known.id}-{name}")
    return write_origin(path, new_id(), ParentRun(id=known.id, path=known.path, step=step)), True


def new_id() -> str:
    """Return twelve digits that no other run has."""
    return uuid.uuid4().hex[:12]


def is_copy(known: Origin, path: Path) -> bool:
    """Whether a directory is not the one that its note was written for, nor that one moved."""
    here = path.resolve()
    if here.stat().st_ino == known.inode:
        return False
    if str(here) == known.path:  # put back from a backup, unless the original was renamed within its folder
        others = (read_origin(one) for one in here.parent.iterdir() if one != here and has_inode(one, known.inode))
        return any(other is not None and other.id == known.id for other in others)
    original = read_origin(Path(known.path))
    if original is not None and original.id == known.id:
        return not os.path.samefile(known.path, here)
    # Gone from there: a move within a file system would have kept the inode, one from another machine can't be told
    return known.host != socket.gethostname() or here.stat().st_dev == known.device


def has_inode(path: Path, inode: int) -> bool:
    """Whether this is the file or folder of that number."""
    try:
        return path.stat().st_ino == inode
    except OSError:
        return False
