"""Words of a command line: flags, most of them Hydra's; overrides; names of studies and runs."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from cli.quoting import quote
from nanogpt import schema
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.schema import ConfigModel

HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--shell-completion", "-sc", "--hydra-help", "--version")
FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p")
CFG_TOPICS = ("job", "hydra", "all")
INFO_TOPICS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
FLAGS = (*HYDRA_FLAGS, *FLAGS_WITH_VALUE, "--resolve", "--multirun", "-m", "--help", "-h")
SEARCH_FLAGS, SEARCH_KEY = ("--config-dir", "-cd"), "hydra.searchpath"
OWN_FILES = "files of your own: --config-dir FOLDER finds FOLDER/GROUP/NAME.yaml as GROUP=NAME"
WHOLE_COMMAND = (
    "to keep a whole command as a file, write FOLDER/experiment/NAME.yaml: --config-dir FOLDER experiment=NAME"
)
ADVICE = {  # flags of Hydra that are not supported
    "--config-path": OWN_FILES,
    "-cp": OWN_FILES,
    "--config-name": WHOLE_COMMAND,
    "-cn": WHOLE_COMMAND,
    "--run": "a command runs without it; leave it out",
    "-r": "a command runs without it; leave it out",
    "--experimental-rerun": "give the same command again, and it continues or says that it is finished",
}


def split_flags(argv: list[str], kind: type[ConfigModel] = ConfigModel) -> tuple[list[str], list[str]]:
    """Return (flags, overrides). Raises BadInput for an unknown flag, naming the key of `kind` that may be meant."""
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
            raise_unknown_flag(word, kind)
        elif flag in FLAGS_WITH_VALUE:
            flags += [flag, value if equals else next(words, "")]
            if flag in ("--cfg", "-c") and flags[-1] not in CFG_TOPICS:
                raise BadInput(f"{flag} {one_line(flags[-1])}: allowed: one of {', '.join(CFG_TOPICS)}")
        elif equals and flag != "--info":
            raise BadInput(f"{one_line(word)}: {flag} takes no value")
        else:
            flags.append(word)
    if not {"--cfg", "-c"} & set(flags) and (only := {"--resolve", "--package", "-p"} & set(flags)):
        raise BadInput(f"{min(only)}: needs --cfg job")
    return flags, overrides


def split_search_path(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (the user's folders with YAML files, the other words). Raises BadInput for what names no folders.

    As in Hydra, the last --config-dir and the last hydra.searchpath count.
    """
    folders: dict[str, list[str]] = {}
    rest: list[str] = []
    left = iter(words)
    for word in left:
        key, equals, value = word.partition("=")
        if key in SEARCH_FLAGS:
            value = value if equals else next(left, "")
            if not value:
                raise BadInput(f"{key}: needs a folder")
            folders[SEARCH_FLAGS[0]] = [value]
        elif key == SEARCH_KEY:
            from cli.overrides import parse_override  # imports Hydra

            read = parse_override(word).value()
            if not isinstance(read, list) or not all(isinstance(folder, str) for folder in read):
                raise BadInput(f"{one_line(word)}: allowed: a list of folders, as [FOLDER] or [file://FOLDER]")
            folders[SEARCH_KEY] = read
        else:
            rest.append(word)
    return [folder for found in folders.values() for folder in found], rest


def raise_unknown_flag(word: str, kind: type[ConfigModel]) -> NoReturn:
    """Raise BadInput for an unknown flag: an alternative to a flag of Hydra, or the key that may be meant."""
    flag, _, value = word.partition("=")
    if flag in ADVICE:
        raise BadInput(f"{one_line(word)}: no such option here; {ADVICE[flag]}")
    key = flag.lstrip("-")
    keys = [name for name, _ in schema.iter_fields(kind)]
    near = "" if any(name == key or name.startswith(f"{key}.") for name in keys) else hint(key, keys)
    why = f"settings are written without dashes: {one_line(f'{key}={value}' if value else f'{key}=…')}{near}"
    raise BadInput(f"{one_line(word)}: no such option; {why}")


def requested_package(flags: list[str]) -> str:
    """Return the value of --package, the part of the configuration to print; empty for all of it."""
    given = [value for flag, value in pairwise(flags) if flag in ("--package", "-p")]
    return given[-1] if given else ""


def collect_targets(words: list[str], key: str = "targets") -> list[str]:
    """Return the words with those that name runs as one override: `runs/a x=time` -> `x=time targets=['runs/a']`.

    Raises BadInput for an unknown flag.
    """
    if "--help" in words or "-h" in words or "--shell-completion" in words or "-sc" in words:
        return words
    flags, rest = split_flags(words)
    named = [word for word in rest if "=" not in word or Path(word).exists()]
    settings = [word for word in rest if word not in named]
    return [*flags, *settings, *([f"{key}=[{','.join(map(quote, named))}]"] if named else [])]


def collect_sides(words: list[str], kind: type[ConfigModel]) -> list[str]:
    """Return the words of an A/B test as overrides of `kind`: the first two are its sides, and keys that it does not
    have are those of a training. Raises BadInput for an unknown flag.
    """
    if {"--help", "-h", "--shell-completion", "-sc"} & set(words):
        return words
    flags, rest = split_flags(words)
    own = [word for word in rest if word.partition("=")[0] in kind.model_fields]
    others = [word for word in rest if word not in own]
    named = {"sides": others[:2], "train": others[2:]}
    return [*flags, *own, *(f"{key}=[{','.join(map(quote, texts))}]" for key, texts in named.items() if texts)]
