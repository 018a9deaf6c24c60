"""Mistakes of the program itself: one line for the person, the traceback in a file that can be sent along."""

import os
import platform
import re
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nanogpt.errors import BadEnvironment, escaped
from nanogpt.redaction import redact

CODE = 1
MEMORY = re.compile(r"out of memory|can't allocate memory|bad_alloc", re.IGNORECASE)
PACKAGES = ("nanogpt-lab", "torch", "hydra-core", "pydantic", "numpy")


def unforeseen(door: str, error: Exception) -> int:
    """Tell of an error that nobody thought of, on standard error; returns the exit code."""
    what = escaped(f"{type(error).__name__}: {error}", 300)
    if isinstance(error, MemoryError) or MEMORY.search(str(error)):
        print(f"error: out of memory: {what}", file=sys.stderr, flush=True)
        return BadEnvironment.exit_code
    text = redact(report(door, error))
    try:
        where = f"the traceback is in {escaped(keep(door, text), 400)}"
    except (OSError, RuntimeError):  # a full disk; nobody's home
        print(text, file=sys.stderr)
        where = "the traceback is above"
    print(
        f"error: {what}; this is a mistake of nanogpt-lab, not yours, and what was saved is intact; "
        f"{where}; please report it with the command you gave",
        file=sys.stderr,
        flush=True,
    )
    return CODE


def report(door: str, error: Exception) -> str:
    """Versions and traceback; neither the command line nor the environment, which may hold secrets."""
    lines = [f"nanogpt-lab, {door}, {time.strftime('%Y-%m-%d %H:%M:%S')}, {platform.platform()}"]
    lines += [f"Python {platform.python_version()}", *(installed(name) for name in PACKAGES)]
    return "\n".join(lines) + "\n\n" + "".join(traceback.format_exception(error))


def installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} is not installed"


def keep(door: str, text: str) -> Path:
    """Write the report where the user's programs keep such things, readable by the user alone. Raises OSError."""
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    folder = Path(state) / "nanogpt-lab"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{door}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    return path
