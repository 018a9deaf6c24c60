"""The code as it was at submission, for the jobs: edits afterwards don't reach what is queued or requeued."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from nanogpt.files import read_bytes, write
from nanogpt.provenance import GIT_STATE, git_state
from nanogpt.redaction import redact_all

PACKAGES = ("conf", "experiments", "launch", "nanogpt")
KINDS = (".py", ".yaml", ".txt")
ROOT = Path(__file__).parents[1]


def snapshot(folder: Path) -> Path:
    """Copy the packages into `folder`/<digest>, unless just this code is there already. Returns where it is.

    Raises OSError.
    """
    files = sorted(
        path
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.suffix in KINDS and not path.name.startswith(".")
    )
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + read_bytes(path) + b"\0")
    place = folder / digest.hexdigest()[:12]
    if not place.exists():
        partial = folder / f".{place.name}.{os.getpid()}"
        for path in files:
            copy = partial / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        write(partial / GIT_STATE, json.dumps(redact_all(git_state(ROOT / "nanogpt"))))
        put_in_place(partial, place)
    return place


def put_in_place(partial: Path, place: Path) -> None:
    """Rename; another command may have been faster."""
    try:
        partial.rename(place)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not place.exists():
            raise
