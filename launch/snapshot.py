"""A copy of the code as it was at submission: later edits don't reach jobs that are queued or requeued.

A snapshot is named by the digest of its sources and verified before it is used again, so one that was cut short, half
deleted or edited is never taken for complete.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from nanogpt.errors import BadEnvironment, one_line
from nanogpt.files import fsync, read_bytes, write
from nanogpt.provenance import GIT_STATE, git_state
from nanogpt.redaction import redact_all

logger = logging.getLogger(__name__)

PACKAGES = ("cli", "conf", "experiments", "launch", "nanogpt")
KINDS = (".py", ".yaml", ".txt")
ROOT = Path(__file__).parents[1]
DIGITS = 12  # of the digest in a snapshot's name


def snapshot(folder: Path) -> Path:
    """Copy the packages into `folder`/<digest>, unless just this code is there already, and return where it is.

    A damaged copy is moved aside, where gc finds it. Raise OSError.
    """
    sources = read_sources(ROOT)
    place = folder / snapshot_name(sources)
    if is_whole(place):
        return place
    partial = folder / f".{place.name}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    for name, content in sources.items():
        copy = partial / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    write(partial / GIT_STATE, json.dumps(redact_all(git_state(ROOT / "nanogpt"))))
    put_in_place(partial, place)
    return place


def read_sources(root: Path) -> dict[str, bytes]:
    """Return the content of every file that jobs need, by its path below `root`, sorted. Raise OSError."""
    files = sorted(
        path
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.suffix in KINDS and not path.name.startswith(".")
    )
    return {str(path.relative_to(root)): read_bytes(path) for path in files}


def snapshot_name(sources: dict[str, bytes]) -> str:
    """Return the name of a snapshot with these sources."""
    digest = hashlib.sha256()
    for name, content in sources.items():
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:DIGITS]


def is_whole(place: Path) -> bool:
    """Return whether a snapshot holds just the code that its name stands for."""
    try:
        return (place / GIT_STATE).is_file() and snapshot_name(read_sources(place)) == place.name
    except OSError:
        return False


def put_in_place(partial: Path, place: Path) -> None:
    """Rename a new snapshot. A damaged one in its place is moved aside; another command may have been faster."""
    fsync(partial)
    if os.path.lexists(place) and not is_whole(place):
        aside, number = place.with_name(f".bad-{place.name}"), 2
        while os.path.lexists(aside):
            aside, number = place.with_name(f".bad-{place.name}-{number}"), number + 1
        place.rename(aside)
        logger.warning(f"{one_line(place)}: this copy of the code was damaged; it is made anew")
    try:
        partial.rename(place)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not is_whole(place):
            raise


def restore(place: Path) -> Path:
    """Return a snapshot for points that are to run with it again, made anew if it is damaged and the code is the same.

    Raise BadEnvironment if it is damaged or gone and the code has changed since.
    """
    if is_whole(place):
        return place
    if snapshot_name(read_sources(ROOT)) == place.name:
        return snapshot(place.parent)
    raise BadEnvironment(
        f"{one_line(place)}: the frozen code is damaged or gone, and the code has changed since; "
        "nanogpt resubmit takes the code as it is now"
    )
