"""Provenance of a run: code, packages, machine and command, without secrets."""

import hashlib
import os
import platform
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from nanogpt.files import read_bytes, read_json_bytes
from nanogpt.redaction import redact_all

PACKAGES = (
    "nanogpt-lab",
    "torch",
    "numpy",
    "hydra-core",
    "omegaconf",
    "pydantic",
    "tokenizers",
    "tiktoken",
    "safetensors",
)
GIT_STATE = "git.json"
DIFF_LIMIT = 200_000  # characters of uncommitted changes kept


def collect_provenance(device: str) -> dict[str, Any]:
    """Return the provenance of one start of a run."""
    facts = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git_state(Path(__file__).parent),
        "code": code_digest(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "job": slurm_job(),
        "pid": os.getpid(),
        "cpu_count": os.cpu_count(),
        "device": device,
    }
    return redact_all(facts)  # the command line and uncommitted changes may hold secrets


def slurm_job() -> str | None:
    """Return the Slurm job that this process belongs to, `123` or `123_4`; None outside of one."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def code_digest() -> str:
    """Return the sha256 over the sources of the library."""
    return compute_code_digest(Path(__file__).parent)


@cache
def compute_code_digest(folder: Path) -> str:
    """Return the digest of a copy of the library, without hidden files such as an editor's locks. Raises OSError."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*.py") if not path.name.startswith(".")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + read_bytes(path) + b"\0")
    return digest.hexdigest()


def package_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit and uncommitted changes of the git checkout of this code, or None outside one.

    A copy of the code for jobs (launch/snapshot.py) has a file with the state of the original checkout.
    """
    with suppress(OSError, ValueError):
        return read_json_bytes(folder.parent / GIT_STATE)
    if not run_git(folder, "ls-files", "."):  # no checkout, or the user's, with an environment in it
        return None
    commit = run_git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    sources = [":/*.py", ":/*.yaml", ":/*.toml"]  # from the top, wherever this file is
    changed = run_git(folder, "status", "--porcelain", "--", *sources) or ""
    diff = run_git(folder, "diff", "HEAD", "--", *sources) or ""
    cut = "\n[cut here]" if len(diff) > DIFF_LIMIT else ""
    return {"commit": commit.strip(), "changed": changed.splitlines(), "diff": diff[:DIFF_LIMIT] + cut}


def run_git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git, or None if there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout
