"""Standard output for a person: results by `print_text`, notices by the loggers of this project.

Every module logs to `logging.getLogger(__name__)`. A command calls `show_logs`; a program that imports the library
gets no output unless it configures logging itself.
"""

import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

WARNING = "warning: "  # the beginning of a line of level WARNING or above
PACKAGES = ("nanogpt", "cli", "launch", "experiments", "api", "hydra_plugins")  # whose loggers a command shows
SCRIPTS = ("train.py", "prepare.py", "sample.py", "evaluate.py", "bench.py")  # of a checkout


LABEL: ContextVar[str] = ContextVar("label", default="")
"""Begins every line that this thread prints."""


class ConsoleHandler(logging.Handler):
    """Prints log records as plain lines; those of level WARNING and above begin with `warning: `."""

    muted = False

    def emit(self, record: logging.LogRecord) -> None:
        print_text((WARNING if record.levelno >= logging.WARNING else "") + record.getMessage())


HANDLER = ConsoleHandler()


def show_logs() -> None:
    """Print what this project logs, from level INFO on."""
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # a library that configures the root logger would print every line again
        logger.addHandler(HANDLER)


def is_visible() -> bool:
    """Return whether log records are printed by this process without labels, and so progress bars too."""
    return HANDLER in logging.getLogger("nanogpt").handlers and not HANDLER.muted and not LABEL.get()


def mute(muted: bool) -> None:
    """Print nothing more, as on all ranks but rank 0, or print again."""
    HANDLER.muted = muted


@contextmanager
def label_lines(label: str) -> Generator[None, None, None]:
    """Begin every line that is printed inside by this thread with a label: which of several runs it is about."""
    token = LABEL.set(f"[{label}] ")
    try:
        yield
    finally:
        LABEL.reset(token)


def print_text(text: str = "") -> None:
    """Print on standard output. If its reader has gone (`| head`), the program goes on without one."""
    if HANDLER.muted:
        return
    if label := LABEL.get():
        text = "\n".join(label + line for line in text.split("\n"))
    try:
        print(text, flush=True)
    except OSError:  # a pipe without a reader, a terminal that is gone, a full disk
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)


def format_command(name: str) -> str:
    """Return how this user starts a command: `python train.py` if such a script runs, else `nanogpt train`."""
    return f"python {name}.py" if Path(sys.argv[0]).name in SCRIPTS else f"nanogpt {name}"
