"""Words of a command line: those that name studies and runs, and texts quoted so that Hydra reads them as they are."""

import re
import shlex
from pathlib import Path

from cli.argv import split_flags

PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")
SPECIAL = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"}


def collect_targets(words: list[str], key: str = "targets") -> list[str]:
    """`report runs/a x=time` as `report x=time targets=["runs/a"]`. Raises BadInput for an unknown option."""
    if "--help" in words or "-h" in words or "--shell-completion" in words or "-sc" in words:
        return words
    flags, rest = split_flags(words)
    named = [word for word in rest if "=" not in word or Path(word).exists()]
    settings = [word for word in rest if word not in named]
    return [*flags, *settings, *([f"{key}=[{','.join(map(quote, named))}]"] if named else [])]


def quote(text: str) -> str:
    """A text that Hydra and OmegaConf read as just this text."""
    inside = re.sub(r"(\\*)'", r"\1\1\\'", text.replace("${", r"\${"))
    return "'" + re.sub(r"(\\+)$", r"\1\1", inside) + "'"


def format_override(key: str, value: object) -> str:
    """`key=value` as one would type it after `python train.py`, before the shell's own quoting."""
    return f"{key}={format_value(value)}"


def format_for_shell(key: str, text: str) -> str:
    """`key=value` as one types it into a shell for `text` to be read as just this text."""
    inside = quote(text)
    return shlex.quote(f"{key}={inside}") if set(inside) & set('"$`!\\') else f'{key}="{inside}"'


def format_value(value: object) -> str:
    """A value of a config as Hydra reads it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{','.join(format_value(one) for one in value)}]"  # pyright: ignore[reportUnknownVariableType]
    text = str(value)
    if isinstance(value, int | float) or (PLAIN.fullmatch(text) and text.lower() not in SPECIAL):
        return text
    return quote(text)
