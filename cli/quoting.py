"""Write values as text that Hydra reads back unchanged."""

import re
import shlex

PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")
SPECIAL = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"}


def quote(text: str) -> str:
    """Return a text quoted so that Hydra and OmegaConf read it unchanged."""
    inside = re.sub(r"(\\*)'", r"\1\1\\'", text.replace("${", r"\${"))
    return "'" + re.sub(r"(\\+)$", r"\1\1", inside) + "'"


def format_override(key: str, value: object) -> str:
    """Return `key=value` for Hydra, without quotes for the shell."""
    return f"{key}={format_for_hydra(value)}"


def format_for_shell(key: str, text: str) -> str:
    """Return `key=value`, quoted for Hydra and for the shell."""
    inside = quote(text)
    return shlex.quote(f"{key}={inside}") if set(inside) & set('"$`!\\') else f'{key}="{inside}"'


def format_for_hydra(value: object) -> str:
    """Return a value of a config as Hydra reads it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{','.join(format_for_hydra(element) for element in value)}]"  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{format_for_hydra(inner)}" for key, inner in value.items()) + "}"  # pyright: ignore[reportUnknownVariableType]
    text = str(value)
    if isinstance(value, int | float) or (PLAIN.fullmatch(text) and text.lower() not in SPECIAL):
        return text
    return quote(text)
