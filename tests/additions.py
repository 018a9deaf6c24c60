"""Adds something to a copy of the code, as docs/extending.md describes, and runs the copy."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CODE = ("nanogpt", "api", "cli", "conf", "launch", "experiments", "tests", "train.py", "evaluate.py", "pyproject.toml")


class Edit(NamedTuple):
    """A new file, or text that is inserted after or before an anchor in a file."""

    path: str
    text: str
    after: str = ""
    before: str = ""


def copy_code(folder: Path, edits: Iterable[Edit]) -> Path:
    """Copy the code into the folder and apply the edits. Compiled files are copied too, to start faster."""
    for name in CODE:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    for edit in edits:
        path = folder / edit.path
        if anchor := edit.after or edit.before:
            text = path.read_text()
            assert text.count(anchor) == 1, (edit.path, anchor)
            path.write_text(text.replace(anchor, anchor + edit.text if edit.after else edit.text + anchor))
        else:
            path.write_text(edit.text)
    return folder


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the copied code in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
