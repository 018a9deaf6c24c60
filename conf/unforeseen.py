"""Internal errors: the traceback on the terminal and in a file, and one line that says whose code it was."""

import os
import platform
import sys
import time
import traceback
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nanogpt
from nanogpt.errors import escaped
from nanogpt.provenance import git_state
from nanogpt.redaction import redact

CODE = 1
PACKAGES = ("nanogpt-lab", "torch", "hydra-core", "pydantic", "numpy")
MOST_NAMED = 5


def report_crash(command: str, error: Exception) -> int:
    """Print the traceback of an exception that nobody foresaw and one line about it. Returns the exit code."""
    lines = redact("".join(traceback.format_exception(error))).splitlines()
    text = "\n".join(escaped(line, 10_000) for line in lines)
    try:
        where = f"above and in {escaped(keep(command, text), 400)}"
    except (OSError, RuntimeError):  # a full disk; no home folder
        where = "above"
    what = escaped(redact(f"{type(error).__name__}: {error}"), 300)
    print(text, f"error: internal error: {what}; traceback {where}; {describe_code(text)}", sep="\n", file=sys.stderr)
    return CODE


def describe_code(text: str) -> str:
    """Return whose code failed: the files that were edited, or that all is as committed and should be reported.

    A new file counts where the traceback `text` passes through it.
    """
    state = git_state(Path(nanogpt.__file__).parent)
    changed = [(line[:2], line[3:]) for line in state["changed"]] if state else []
    edited = [name for mark, name in changed if mark != "??" or name in text]
    if not edited:
        return "a mistake of nanogpt-lab, not yours; please report it with the command you gave"
    named = ", ".join(map(escaped, edited[:MOST_NAMED]))
    more = f" and {len(edited) - MOST_NAMED} more" if len(edited) > MOST_NAMED else ""
    return f"edited since the last commit: {named}{more}; a mistake may be there"


def keep(command: str, text: str) -> Path:
    """Write versions and traceback to a new file that only the user can read. Raises OSError.

    Neither the command line nor the environment is in it: they may hold secrets.
    """
    lines = [f"nanogpt-lab, {command}, {time.strftime('%Y-%m-%d %H:%M:%S')}, {platform.platform()}"]
    lines += [f"Python {platform.python_version()}", *(describe_package(name) for name in PACKAGES)]
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    folder = Path(state) / "nanogpt-lab"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{uuid.uuid4().hex[:8]}.txt"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n\n" + text)
    return path


def describe_package(name: str) -> str:
    """Return a package's name with its version."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} is not installed"
