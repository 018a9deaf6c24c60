"""A file for a text that is too long for a one-line error, which names the file."""

import os
import platform
import time
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("nanogpt-lab", "torch", "hydra-core", "pydantic", "numpy")


def save_text(about: str, text: str) -> Path:
    """Write versions and `text` to a new file that only the user can read. Raises OSError, RuntimeError.

    It has neither the command line nor the environment, which may hold secrets.
    """
    lines = [f"nanogpt-lab, {about}, {time.strftime('%Y-%m-%d %H:%M:%S')}, {platform.platform()}"]
    lines += [f"Python {platform.python_version()}", *(describe_package(name) for name in PACKAGES)]
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    folder = Path(state) / "nanogpt-lab"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{about}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{uuid.uuid4().hex[:8]}.txt"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n\n" + text)
    return path


def describe_package(name: str) -> str:
    """Return a package's name with its version."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} is not installed"
