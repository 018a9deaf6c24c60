"""Identity of a run, in origin.json: tells a moved run directory from a copy.

A moved directory is the same run. A copy, while its original exists or may exist on another machine, is a fork: it gets
a new id, so that two runs never write to one run of a tracker.
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
    """A run's permanent id, and the location of its directory at its last start."""

    model_config = ConfigDict(extra="ignore")

    id: Annotated[str, Field(pattern=r"^[0-9a-z]{12}$")]
    path: str
    inode: int
    device: int
    host: str
    forked_from: ParentRun | None = None


def read_origin(path: Path) -> Origin | None:
    """Return the origin in a run directory, or None."""
    try:
        return Origin.model_validate(read_json_bytes(path / FILE))
    except (OSError, ValueError, ValidationError):
        return None


def get_run_id(path: Path, born: Mapping[str, Any]) -> str:
    """Return a run's id. That of a run without origin.json follows from `born`, its first start in provenance.json."""
    origin = read_origin(path)
    return origin.id if origin else derive_run_id(path, born)


def derive_run_id(path: Path, born: Mapping[str, Any]) -> str:
    """Return twelve hex digits that depend on the directory's name and the first start.

    A later run in a directory of the same name gets another id: trackers ignore steps that they already have.
    """
    facts = {key: born.get(key) for key in ("time", "host", "pid")}
    return hashlib.sha256(json.dumps([path.name, facts]).encode()).hexdigest()[:12]


def write_origin(path: Path, run_id: str, parent: ParentRun | None) -> Origin:
    """Write origin.json, with the directory's present location. Raises OSError."""
    here, host = path.resolve(), socket.gethostname()
    inode, device = here.stat().st_ino, here.stat().st_dev
    origin = Origin(id=run_id, path=str(here), inode=inode, device=device, host=host, forked_from=parent)
    write_atomic(path / FILE, to_json(origin))
    return origin


def update_origin(path: Path, born: Mapping[str, Any], step: int) -> tuple[Origin, bool]:
    """Write origin.json at a start, and return it. The bool is True if the directory is a copy and now becomes a fork.

    `step` is that of the newest checkpoint. W&B's files, which are the original's, are renamed. Raises OSError.
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
    return uuid.uuid4().hex[:12]


def is_copy(known: Origin, path: Path) -> bool:
    """Return whether a directory is a copy, rather than the directory of its origin.json, perhaps moved."""
    here = path.resolve()
    if here.stat().st_ino == known.inode:
        return False
    if str(here) == known.path:  # restored from a backup, unless the original was renamed in the same folder
        siblings = (path for path in here.parent.iterdir() if path != here and has_inode(path, known.inode))
        others = map(read_origin, siblings)
        return any(other is not None and other.id == known.id for other in others)
    original = read_origin(Path(known.path))
    if original is not None and original.id == known.id:
        return not os.path.samefile(known.path, here)
    # The original is gone. A move within a file system would have kept the inode; one from another machine looks the
    # same as a copy.
    return known.host != socket.gethostname() or here.stat().st_dev == known.device


def has_inode(path: Path, inode: int) -> bool:
    try:
        return path.stat().st_ino == inode
    except OSError:
        return False
