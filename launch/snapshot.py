"""A copy of the code for jobs, so that later edits don't reach those that are queued or requeued.

A snapshot is named by the digest of its sources and verified before it is used again, so an incomplete or edited one is
never used.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from nanogpt.errors import BadEnvironment, one_line
from nanogpt.files import fsync, read_bytes, write_file
from nanogpt.provenance import GIT_STATE, git_state
from nanogpt.redaction import redact_all

logger = logging.getLogger(__name__)

PACKAGES = ("cli", "conf", "experiments", "launch", "nanogpt")
KINDS = (".py", ".yaml", ".txt", ".json")
ROOT = Path(__file__).parents[1]
DIGITS = 12  # of the digest in a snapshot's name


def snapshot(folder: Path) -> Path:
    """Copy the packages into `folder`/<digest>, unless this code is there already, and return the path.

    A damaged copy is moved aside; gc deletes it. Raises OSError.
    """
    sources = read_sources(ROOT)
    copy = folder / snapshot_name(sources)
    if is_whole(copy):
        return copy
    partial = folder / f".{copy.name}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    for name, content in sources.items():
        file = partial / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    write_file(partial / GIT_STATE, json.dumps(redact_all(git_state(ROOT / "nanogpt"))))
    put_in_place(partial, copy)
    return copy


def read_sources(root: Path) -> dict[str, bytes]:
    """Return the content of every file that jobs need, by its path below `root`, sorted. Raises OSError."""
    files = sorted(
        path
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.suffix in KINDS and not path.name.startswith(".")
    )
    return {str(path.relative_to(root)): read_bytes(path) for path in files}


def snapshot_name(sources: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sources.items():
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:DIGITS]


def is_whole(copy: Path) -> bool:
    """Return whether a snapshot holds exactly the code that its name is the digest of."""
    try:
        return (copy / GIT_STATE).is_file() and snapshot_name(read_sources(copy)) == copy.name
    except OSError:
        return False


def put_in_place(partial: Path, copy: Path) -> None:
    """Give a new snapshot its name and move a damaged one aside. Another command may have been faster."""
    fsync(partial)
    if os.path.lexists(copy) and not is_whole(copy):
        aside, number = copy.with_name(f".bad-{copy.name}"), 2
        while os.path.lexists(aside):
            aside, number = copy.with_name(f".bad-{copy.name}-{number}"), number + 1
        copy.rename(aside)
        logger.warning(f"{one_line(copy)}: this copy of the code was damaged; it was replaced")
    try:
        partial.rename(copy)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not is_whole(copy):
            raise


def restore(copy: Path) -> Path:
    """Return a snapshot that points will run with again; a damaged one is replaced if the code is still the same.

    Raises BadEnvironment if it is damaged or missing and the code has changed since.
    """
    if is_whole(copy):
        return copy
    if snapshot_name(read_sources(ROOT)) == copy.name:
        return snapshot(copy.parent)
    raise BadEnvironment(
        f"{one_line(copy)}: the frozen code is damaged or missing, and the code has changed since; "
        "nanogpt resubmit uses the current code"
    )
