"""nanogpt-lab: train GPTs. README.md describes the tree, docs/python.md the Python interface.

Nothing is imported here, so that every part loads alone; the names of `__all__` are imported when they are used.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from api.compose import compose
    from api.gpt import GPTConfig
    from api.gpt import NanoGPT as GPT
    from api.runs import Run, load, train
    from api.studies import StudyResults, study
    from nanogpt.console import show_logs

__all__ = ["GPT", "GPTConfig", "Run", "StudyResults", "compose", "load", "show_logs", "study", "train"]
ORIGINS = {
    "GPT": "api.gpt.NanoGPT",
    "GPTConfig": "api.gpt.GPTConfig",
    "Run": "api.runs.Run",
    "StudyResults": "api.studies.StudyResults",
    "compose": "api.compose.compose",
    "load": "api.runs.load",
    "show_logs": "nanogpt.console.show_logs",
    "study": "api.studies.study",
    "train": "api.runs.train",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent, unless a program configures logging


def __getattr__(name: str) -> Any:
    """Import a public name, or the package `nanogpt.config`, when it is first used."""
    if name == "config":
        return import_module("nanogpt.config")
    if name not in ORIGINS:
        raise AttributeError(f"module 'nanogpt' has no attribute {name!r}")
    module, _, attribute = ORIGINS[name].rpartition(".")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return sorted({*globals(), *__all__})
