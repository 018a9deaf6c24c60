"""The commands of this room:  python -m experiments sizing model=gpt2_xl  (see --help)"""

import sys
from importlib import resources
from typing import NoReturn

from conf.door import enter, guarded
from nanogpt.config import ScalingConfig, SizingConfig
from nanogpt.errors import BadInput, escaped, hint

COMMANDS = ("sizing", "scaling")


def main() -> None:
    """Hand the words after the command to its door."""
    words = sys.argv[1:]
    if not words or words[0] not in COMMANDS:
        guarded("experiments", lambda: explain(words))
    command = words[0]
    sys.argv = [f"{sys.argv[0]} {command}", *words[1:]]  # the door, and Hydra behind it, read them there
    if command == "sizing":
        from experiments.sizing import size

        enter("sizing", SizingConfig, size)
    else:
        from experiments.scaling import scale

        enter("scaling", ScalingConfig, scale)


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
