"""The commands of this room:  python -m experiments report runs/STUDY  (see --help)"""

import sys
from collections.abc import Callable
from importlib import import_module, resources
from typing import Any, NoReturn

from conf.door import dispatch, enter, guarded
from conf.words import with_targets
from nanogpt.config import (
    CompareConfig,
    CoordinatesConfig,
    GcConfig,
    ListConfig,
    ReportConfig,
    ScalingConfig,
    SizingConfig,
    WatchConfig,
)
from nanogpt.errors import BadInput, escaped, hint
from nanogpt.schema import Section

# command -> its config, and the function that answers, in a module that is only imported for it
QUESTIONS: dict[str, tuple[type[Section], str]] = {
    "sizing": (SizingConfig, "sizing.size"),
    "scaling": (ScalingConfig, "scaling.scale"),
    "coordinates": (CoordinatesConfig, "coordinates.check"),
}
ABOUT_RUNS: dict[str, tuple[type[Section], str]] = {
    "report": (ReportConfig, "report.report"),
    "compare": (CompareConfig, "compare.compare"),
    "list": (ListConfig, "listing.list_runs"),
    "watch": (WatchConfig, "listing.watch"),
    "gc": (GcConfig, "collecting.collect"),
}
COMMANDS = (*QUESTIONS, *ABOUT_RUNS)


def main() -> None:
    """Hand the words after the command to its door."""
    words = sys.argv[1:]
    if not words or words[0] not in COMMANDS:
        guarded("experiments", lambda: explain(words))
    command = words[0]
    sys.argv = [f"{sys.argv[0]} {command}", *words[1:]]  # the door, and Hydra behind it, read them there
    if command in QUESTIONS:
        kind, where = QUESTIONS[command]
        enter(command, kind, answer(where))
    guarded(command, lambda: about_runs(command))


def about_runs(command: str) -> int:
    """A command whose words without '=' name studies and runs."""
    kind, where = ABOUT_RUNS[command]
    sys.argv[1:] = with_targets(sys.argv[1:])
    return dispatch(command, kind, answer(where), sys.argv[1:])


def answer(where: str) -> Callable[[Any], int]:
    """`module.function`, imported when it is called."""
    module, _, name = where.partition(".")

    def call(config: Section) -> int:
        return getattr(import_module(f"experiments.{module}"), name)(config)

    return call


def explain(words: list[str]) -> int:
    """The page of all commands, where it was asked for."""
    if words[:1] in ([], ["--help"], ["-h"]):
        print(resources.files("conf").joinpath("help/experiments.txt").read_text().rstrip())
        return 0
    refuse(words[0])


def refuse(word: str) -> NoReturn:
    raise BadInput(f"{escaped(word)}: no such command; allowed: one of {', '.join(COMMANDS)}{hint(word, COMMANDS)}")


if __name__ == "__main__":
    main()
