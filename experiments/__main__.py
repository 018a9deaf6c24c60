"""The commands of this room:  python -m experiments report runs/STUDY  (see --help)"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from conf.door import command_of, dispatch, enter, guarded
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
    command = command_of("experiments", COMMANDS)
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


if __name__ == "__main__":
    main()
