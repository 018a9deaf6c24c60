"""The words of a command line: flags, most of them Hydra's, and overrides."""

from itertools import pairwise
from typing import NoReturn

from nanogpt import schema
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.schema import ConfigModel

HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--shell-completion", "-sc", "--hydra-help", "--version")
FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p")
CFG_TOPICS = ("job", "hydra", "all")
INFO_TOPICS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
FLAGS = (*HYDRA_FLAGS, *FLAGS_WITH_VALUE, "--resolve", "--multirun", "-m", "--help", "-h")
OWN_FILES = "a file of your own is a choice like the others: conf/GROUP/NAME.yaml beside train.py, and GROUP=NAME"
ADVICE = {  # flags of Hydra that commands here don't take
    "--config-dir": OWN_FILES,
    "-cd": OWN_FILES,
    "--config-path": OWN_FILES,
    "-cp": OWN_FILES,
    "--config-name": "to keep a whole command as a file, write conf/experiment/NAME.yaml and give experiment=NAME",
    "-cn": "to keep a whole command as a file, write conf/experiment/NAME.yaml and give experiment=NAME",
    "--run": "a command runs without it; leave it out",
    "-r": "a command runs without it; leave it out",
    "--experimental-rerun": "give the same command again, and it continues or says that it is finished",
}


def split_flags(argv: list[str], kind: type[ConfigModel] = ConfigModel) -> tuple[list[str], list[str]]:
    """(flags, overrides). Raises BadInput for a flag that doesn't exist, with the key of `kind` that may be meant."""
    flags: list[str] = []
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flags[-1:] in (["--info"], ["-i"]) and word in INFO_TOPICS:
            flags.append(word)
        elif not word.startswith("-") or (equals and not word.startswith("--")):
            overrides.append(word)
        elif flag not in FLAGS:
            refuse_flag(word, kind)
        elif flag in FLAGS_WITH_VALUE:
            flags += [flag, value if equals else next(words, "")]
            if flag in ("--cfg", "-c") and flags[-1] not in CFG_TOPICS:
                raise BadInput(f"{flag} {one_line(flags[-1])}: allowed: one of {', '.join(CFG_TOPICS)}")
        elif equals and flag != "--info":
            raise BadInput(f"{one_line(word)}: {flag} takes no value")
        else:
            flags.append(word)
    if not {"--cfg", "-c"} & set(flags) and (only := {"--resolve", "--package", "-p"} & set(flags)):
        raise BadInput(f"{min(only)}: is about what --cfg shows; add --cfg job")
    return flags, overrides


def refuse_flag(word: str, kind: type[ConfigModel]) -> NoReturn:
    """Raises BadInput for a word with dashes that is no flag: what to do instead of Hydra's, or the key it may mean."""
    flag, _, value = word.partition("=")
    if flag in ADVICE:
        raise BadInput(f"{one_line(word)}: no such option here; {ADVICE[flag]}")
    key = flag.lstrip("-")
    keys = [one for one, _ in schema.iter_fields(kind)]
    near = "" if any(one == key or one.startswith(f"{key}.") for one in keys) else hint(key, keys)
    why = f"settings are written without dashes: {one_line(f'{key}={value}' if value else f'{key}=…')}{near}"
    raise BadInput(f"{one_line(word)}: no such option; {why}")


def requested_package(flags: list[str]) -> str:
    """Return the value of --package, the part of the configuration to show; empty for all."""
    given = [value for flag, value in pairwise(flags) if flag in ("--package", "-p")]
    return given[-1] if given else ""
