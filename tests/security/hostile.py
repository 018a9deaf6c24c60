"""What an attacker would leave in files, and commands given in this process as a person gives them."""

import logging
import os
import pickle
import re
import runpy
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


class Evil:
    """A pickle of this makes a file when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.canary}'",)


DEEP = b"[" * 100_000
WORST = ("pickle", "deep")  # for the second command that reads a file, and slow ones
# fmt: off
JSON = {"deep": DEEP, "deeper": b'{"a":' * 100_000, "list": b"[]", "null": b"null", "text": b'"x"', "empty": b"",
        "bytes": bytes(range(256)), "digits": b'{"kind":' + b"9" * 5000 + b"}", "nothing": b"{}",
        "kinds": b'{"step":[],"kind":{},"steps":{},"state":[],"best":{},"pid":"x","host":"\\u001b[2J","model":[]}'}
# fmt: on
"""What a JSON file may hold instead of what it should."""


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


class Person:
    """Gives commands in a folder; whatever they do, no canary may appear and no mistake of the program."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.canary, self.patch, self.capsys = folder, folder.parent / "canary", patch, capsys
        self.reports = folder.parent / "state"
        patch.setenv("XDG_STATE_HOME", str(self.reports))
        patch.chdir(folder)

    @property
    def pickle(self) -> bytes:
        """A file that must not be opened."""
        return pickle.dumps(Evil(self.canary))

    def give(self, *words: str) -> Said:
        """`python train.py …`, `nanogpt report …`."""
        self.capsys.readouterr()
        handlers, level = logging.root.handlers[:], logging.root.level
        self.patch.setattr(sys, "argv", [words[1] if words[0] == "-m" else words[0], *words[1 + (words[0] == "-m") :]])
        with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
            warnings.simplefilter("default")  # as for a person, who would see a warning on standard error
            warnings.filterwarnings("ignore", message=".*found in sys.modules after import")
            if words[0] == "-m":
                runpy.run_module(words[1], run_name="__main__")
            else:
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        logging.root.handlers[:], logging.root.level = handlers, level  # Hydra's, for --info, would stay
        code, said = ended.value.code, self.capsys.readouterr()
        assert isinstance(code, int), code
        done = Said(code, said.out, said.err)
        assert not self.canary.exists(), f"{words} ran what it read"
        assert not self.reports.exists() and (code != 1 or not done.err), f"{words}: {done.err}"
        return done

    def refused(self, *words: str) -> int:
        """The same; what is said on standard error must be one printable line. Returns the exit code."""
        done = self.give(*words)
        done = Said(done.code, done.out, "".join(re.split(r"(?m)^note: .*\n", done.err)))
        assert done.code in (2, 3, 4, 5), (words, done)
        assert done.err.startswith("error: ") and done.err.count("\n") == 1 and done.err[:-1].isprintable(), done.err
        assert len(done.err) < 2100
        return done.code


def payloads(person: Person) -> dict[str, bytes]:
    """Return the contents to try as a file, by name."""
    return {"pickle": person.pickle} | JSON
