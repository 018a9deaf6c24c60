"""Resolve the interpolations of a composed config, and keep secrets out of it.

A config is saved, printed and uploaded. Therefore only `${key}` and `${oc.env:NAME}` with a variable that holds a path,
a host or the like are allowed, and every resolved value is compared with the secrets of the environment.
"""

import re
from collections.abc import Iterator
from functools import reduce
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from cli.config_files import choices
from cli.overrides import Value
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.fields import literal_choices
from nanogpt.redaction import find_secret, is_secret_name, secret_values
from nanogpt.schema import ConfigModel, iter_fields

RESOLVER = OmegaConfGrammarParser.InterpolationResolverContext
ALLOWED = "oc.env"
HARMLESS = re.compile(
    r"HOME|USER|LOGNAME|HOSTNAME|HOST|PWD|TMP|TMPDIR|TEMP|SCRATCH|WORK|WORKSPACE|PROJECT|STORE|DATA|CLUSTER|PARTITION"
    r"|SLURM_[A-Z_]+|XDG_[A-Z_]+|CUDA_VISIBLE_DEVICES|CONDA_PREFIX|VIRTUAL_ENV"
    r"|\w*_(?:DIR|DIRECTORY|FOLDER|PATH|FILE|HOME|ROOT|CACHE|SCRATCH|WORK|NAME|PROJECT|GROUP|USER|HOST|PARTITION)"
    r"|\w*(?:DIR|PATH)"
)
"""Names of environment variables that `${oc.env:…}` may read."""


def first_error_line(error: Exception) -> str:
    """Return the first line of an error's message, and the next if it ends in a colon; without a message its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    key = next((line for line in lines[2:] if line.startswith("full_key: ")), "")
    return f"{lines[0]} {lines[1]} {key}".rstrip() if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def set_value(composed: DictConfig, typed: Value) -> None:
    """Set a key as Hydra does. Raises BadInput."""
    try:
        OmegaConf.update(composed, typed.key, typed.value, merge=True)
    except OmegaConfBaseException as error:
        raise BadInput(f"{typed.key}={one_line(typed.text)}: {one_line(first_error_line(error))}") from None


def resolve_values(composed: DictConfig, keys: set[str], ordinary: frozenset[str]) -> dict[str, Any]:
    """Return the config as a plain dict. Raises BadInput for an interpolation that fails, and for a secret."""
    try:
        check_interpolations(OmegaConf.to_container(composed))
        plain: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        name = re.sub(r".*'(.*)' not found.*", r"\1", first_error_line(error))
        raise BadInput(f"{error.full_key}: refers to the unknown key '{one_line(name)}'{hint(name, keys)}") from None
    except InterpolationResolutionError as error:
        unset = re.search(r"Environment variable '(.*)' not found", str(error))
        why = f"the environment variable {unset[1]} is not set" if unset else first_error_line(error)
        raise BadInput(f"{error.full_key}: {why}") from None
    check_values(plain, ordinary)
    return plain


def is_constant(value: object) -> bool:
    """Return whether a value needs no resolving: a number, or text without an interpolation."""
    if type(value) is str:
        return "${" not in value and value != "???"
    return value is None or type(value) in (bool, int, float)


def constant_values(composed: DictConfig, keys: set[str]) -> dict[str, Any] | None:
    """Return the config as a plain dict; None if a value must be resolved or a key is missing."""
    plain: Any = OmegaConf.to_container(composed)
    if not all(is_constant(text) for _, text in strings(plain)):
        return None
    try:
        for key in keys:
            reduce(lambda inner, name: inner[name], key.split("."), plain)
    except (KeyError, TypeError):
        return None
    return plain


def check_interpolations(raw: object) -> None:
    """Raise BadInput for a resolver other than `oc.env`, or a variable that is not known to be harmless."""
    for key, text in strings(raw):
        if "${" not in text:
            continue
        try:
            tree = parse(text)
        except GrammarParseError:
            continue  # resolving it reports the error
        for resolver in resolvers(tree):
            check_resolver(key, resolver)


def check_resolver(key: str, resolver: Any) -> None:
    """Raise BadInput unless this is `oc.env` with the literal name of a harmless variable."""
    shown = one_line(resolver.getText())
    name = resolver.resolverName().getText()
    if name != ALLOWED:
        raise BadInput(
            f"{key}: {shown}: resolver '{one_line(name)}' is not allowed; allowed: ${{key}} and ${{oc.env:NAME}}"
        )
    sequence = resolver.sequence()
    first = sequence.getChild(0).getText() if sequence is not None and sequence.getChildCount() else ""
    variable = first.strip().strip("'\"").strip()
    if not re.fullmatch(r"[A-Za-z_]\w*", variable, re.ASCII):
        raise BadInput(f"{key}: {shown}: the name of an environment variable must be written out")
    if is_secret_name(variable):
        raise BadInput(f"{key}: {shown}: {variable} looks like a secret and may not enter the config")
    if not HARMLESS.fullmatch(variable):
        raise BadInput(
            f"{key}: {shown}: {variable} is not known to be harmless; allowed: names like HOME, SCRATCH, *_DIR; "
            f'or give the value on the command line: {key}="${variable}"'
        )


def resolvers(tree: Any) -> Iterator[Any]:
    """Yield every resolver call in a parsed text, nested ones included."""
    if isinstance(tree, RESOLVER):
        yield tree
    for child in tree.getChildren() if hasattr(tree, "getChildren") else ():
        yield from resolvers(child)


def check_values(plain: object, ordinary: frozenset[str] = frozenset()) -> None:
    """Raise BadInput, naming the key and not the value, if a resolved config holds a secret.

    `ordinary` words (choices and defaults) are allowed, even if a weak password equals one.
    """
    secrets = secret_values()
    for key, text in strings(plain):
        if text not in ordinary and (what := find_secret(text, secrets)):
            raise BadInput(f"{key}: holds {what}; a config is saved and shown, so no secret may enter it")


def strings(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, string) for every string in nested dicts and lists, keys of dicts included."""
    if isinstance(value, str):
        yield key or "config", value
    elif isinstance(value, dict):
        for name, inner in value.items():  # pyright: ignore[reportUnknownVariableType]
            if isinstance(name, str):
                yield key or "config", name
            yield from strings(inner, f"{key}.{name}" if key else str(name))  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, list | tuple):
        for inner in value:  # pyright: ignore[reportUnknownVariableType]
            yield from strings(inner, key)


def ordinary_words(kind: type[ConfigModel], groups: list[str]) -> frozenset[str]:
    """Return the choices and defaults of all keys of a config."""
    words = {name for group in groups for name in choices(group)}
    for _, field in iter_fields(kind):
        words |= {*literal_choices(field.annotation), *([field.default] if isinstance(field.default, str) else [])}
    return frozenset(words)
