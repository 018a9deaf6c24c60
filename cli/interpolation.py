"""Which interpolations a config may hold, and the check that no secret gets into one by any way.

A config is saved, shown and uploaded. So only `${key}` and `${oc.env:NAME}` of variables that hold paths and the like
are allowed, and every resolved value is compared with the secrets of the environment.
"""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf.errors import GrammarParseError
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from cli.config_files import choices
from nanogpt.errors import BadInput, one_line
from nanogpt.redaction import find_secret, is_secret_name, secret_values
from nanogpt.schema import ConfigModel, iter_fields, literal_choices

RESOLVER = OmegaConfGrammarParser.InterpolationResolverContext
ALLOWED = "oc.env"
HARMLESS = re.compile(
    r"HOME|USER|LOGNAME|HOSTNAME|HOST|PWD|TMP|TMPDIR|TEMP|SCRATCH|WORK|WORKSPACE|PROJECT|STORE|DATA|CLUSTER|PARTITION"
    r"|SLURM_[A-Z_]+|XDG_[A-Z_]+|CUDA_VISIBLE_DEVICES|CONDA_PREFIX|VIRTUAL_ENV"
    r"|\w*_(?:DIR|DIRECTORY|FOLDER|PATH|FILE|HOME|ROOT|CACHE|SCRATCH|WORK|NAME|PROJECT|GROUP|USER|HOST|PARTITION)"
    r"|\w*(?:DIR|PATH)"
)
"""Names of environment variables that `${oc.env:…}` may read."""


def check_interpolations(raw: object) -> None:
    """Raise BadInput for an interpolation that computes, or that reads a variable which is not known to be harmless."""
    for key, text in strings(raw):
        if "${" not in text:
            continue
        try:
            tree = parse(text)
        except GrammarParseError:
            continue  # OmegaConf refuses it in its own words when it is resolved
        for resolver in resolvers(tree):
            check_resolver(key, resolver)


def check_resolver(key: str, resolver: Any) -> None:
    """Raise BadInput unless this is `oc.env` with the plain name of a harmless variable."""
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
    """Yield every call of a resolver in a parsed text, also those within others."""
    if isinstance(tree, RESOLVER):
        yield tree
    for child in tree.getChildren() if hasattr(tree, "getChildren") else ():
        yield from resolvers(child)


def check_values(plain: object, ordinary: frozenset[str] = frozenset()) -> None:
    """Raise BadInput, naming the key and not the value, if a resolved config holds a secret.

    `ordinary` are words that occur in configs anyhow (choices and defaults), which a poor password may be equal to.
    """
    secrets = secret_values()
    for key, text in strings(plain):
        if text not in ordinary and (what := find_secret(text, secrets)):
            raise BadInput(f"{key}: holds {what}; a config is saved and shown, so no secret may enter it")


def strings(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string inside nested dicts and lists, keys of dicts too, each with its dotted key."""
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
