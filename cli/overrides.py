"""Parse and check overrides before Hydra sees them.

Hydra itself accepts `+new.key=1` and `~model`, and its advice for a typo is to add the key.
"""

import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from types import NoneType
from typing import Any, NoReturn, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, ValueType
from hydra.errors import HydraException

from cli.config_files import choices, groups, optional_groups
from cli.plugin_config import PIP, plugin_groups, plugin_keys, plugin_names
from cli.quoting import format_for_shell
from cli.sweep_keys import (
    LAUNCHER,
    SWEEP_PREFIXES,
    SWEEPER,
    explain_hydra_key,
    sweep_fields,
    sweep_groups,
    sweep_key_names,
)
from nanogpt import schema
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.fields import is_literal
from nanogpt.schema import ConfigModel

MAX_POINTS = 100_000
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2212"
TYPOGRAPHIC = dict.fromkeys(DASHES, "-") | {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " "}
"""Characters that word processors and web pages substitute."""
MAX_EXAMPLE_LENGTH = 60  # longest value that a message repeats in quotes


def keep_last(overrides: Sequence[str]) -> list[str]:
    """Return the last override of each key, as Hydra does."""
    last: dict[str, str] = {}
    for text in overrides:
        last.pop(override_key(text), None)
        last[override_key(text)] = text
    return list(last.values())


def warn_about_repeats(overrides: Sequence[str]) -> None:
    """Print a note on standard error for each key that is given more than once with different values."""
    given: dict[str, list[str]] = {}
    for text in overrides:
        given.setdefault(override_key(text), []).append(text)
    for key, texts in given.items():
        if len(set(texts)) > 1:
            note = f"{' '.join(map(one_line, texts))}: {one_line(key)} is given {len(texts)} times; the last one counts"
            print(f"note: {note}", file=sys.stderr)


def override_key(text: str) -> str:
    """Return the key of an override as typed; of a text without `=` all of it."""
    return text.partition("=")[0].strip()


def split_literals(kind: type[ConfigModel], overrides: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return {key: value} of free-text keys, and the other overrides.

    Hydra parses values in quotes, and `null` for a key that may be null.
    """
    free = {key: field for key, field in schema.iter_fields(kind) if is_literal(field)}
    literals: dict[str, str] = {}
    rest: list[str] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        is_null = value == "null" and key in free and NoneType in get_args(free[key].annotation)
        if equals and key in free and not quoted and not is_null:
            literals[key] = value
        else:
            rest.append(text)
    return literals, rest


def parse_override(text: str, kind: type[ConfigModel] = ConfigModel) -> Override:
    """Parse one override. Raises BadInput with the reason, and with what the key of `kind` takes."""
    key, equals, value = text.partition("=")
    plain = one_line(text)
    if text.startswith("~"):
        raise BadInput(f"{plain}: keys can't be deleted; set a value with key=value")
    if text.startswith("+"):
        raise BadInput(f"{plain}: keys can't be added; set one that exists without +, --help all lists them")
    if not equals:
        raise BadInput(f"{plain}: not an override; {suggest_override(text)}")
    if not key.strip():
        raise BadInput(f"{plain}: the key before '=' is missing")
    try:
        return hydra_parse(text)
    except (HydraException, RecursionError, ValueError):  # the last for an integer of thousands of digits
        raise BadInput(f"{plain}: {explain_unreadable(key, value, kind)}") from None


def suggest_override(text: str) -> str:
    """Return a suggestion for a word without `=`."""
    if text.endswith(".py"):
        return "write key=value; nanoGPT's config files are experiment=NAME here"
    if text and text[0] in DASHES:
        return f"options begin with '-' or '--', and this with {text[0]!r}"
    key, colon, value = text.partition(":")
    return f"write {one_line(key)}={one_line(value.strip())}" if colon and value else "write key=value"


def hydra_parse(text: str) -> Override:
    """Parse one override with Hydra. Raises HydraException, RecursionError, ValueError."""
    return OverridesParser.create().parse_override(text)


def explain_unreadable(key: str, value: str, kind: type[ConfigModel]) -> str:
    """Return why Hydra can't parse `key=value`, and what to write instead if that is clear."""
    if key != key.rstrip() or any(c.isspace() for c in key.strip()):
        return "write key=value without blanks before '='"
    if odd := next((c for c in key if not (c.isalnum() and c.isascii()) and c not in "_./@"), None):
        return f"no key has the character {one_line(odd)!r}"
    if pasted := next((c for c in value if c in TYPOGRAPHIC), None):
        plain = "".join(TYPOGRAPHIC.get(c, c) for c in value)
        return f"the character {pasted!r} is not the one on a keyboard: {one_line(key)}={one_line(plain)}"
    if value.endswith(","):
        return "ends with a comma; leave it out, or give one more value"
    if len(value) > MAX_EXAMPLE_LENGTH or any(c in value for c in "[]{}()'\""):
        return "can't be read; check the quotes and brackets"
    if value.startswith("~"):
        expanded = os.path.expanduser(value)
        return f"write {one_line(key)}={one_line(expanded)}" if expanded != value else "there is no such user"
    odd = next((c for c in value if not (c.isalnum() and c.isascii()) and not is_readable(f"{key}=a{c}a")), None)
    what = f"the character {one_line(odd)!r}" if odd else "this"
    field = dict(schema.iter_fields(kind)).get(key)
    if field and "str" not in str(field.annotation):
        return f"{what} can't be in it; allowed: {schema.describe_allowed(field)}"
    if field and (problem := value_problem(kind, key, value)):
        return f"{what} needs quotes, and is not allowed in them either; allowed: {problem.rpartition('allowed: ')[2]}"
    return f"{what} needs quotes: {format_for_shell(key, value)}"


def value_problem(kind: type[ConfigModel], key: str, value: object) -> str:
    """Return the error message for a value of a key, whatever the other keys are; empty for a valid one."""
    try:
        schema.check_value(kind, key, value)
    except BadInput as error:
        return str(error)
    return ""


def is_readable(text: str) -> bool:
    """Return whether Hydra can parse an override."""
    try:
        hydra_parse(text)
    except (HydraException, ValueError):
        return False
    return True


def expand_glob(command: str, kind: type[ConfigModel], override: Override) -> Override:
    """Return `group=glob(…)` as the names of the matching files; any other override unchanged.

    Raises BadInput for a key that is not a group, and if nothing matches.
    """
    pattern = override.value()
    if not isinstance(pattern, Glob):
        return override
    group, text = override.key_or_group, one_line(override.input_line)
    if group not in groups(command):
        check_keys(command, kind, [override])
        raise BadInput(f"{text}: glob() chooses files of a group; for other keys list values with commas")
    names = pattern.filter(choices(group))
    if not names:
        raise BadInput(f"{text}: matches none of {', '.join(choices(group))}")
    listed = ChoiceSweep(list=[*names], simple_form=True)
    line = f"{group}={','.join(names)}"
    return replace(override, value_type=ValueType.CHOICE_SWEEP, _value=listed, input_line=line)


def check_keys(command: str, kind: type[ConfigModel], overrides: list[Override]) -> None:
    """Raise BadInput unless every override names an existing group or key, and an existing choice."""
    keys = [key for key, _ in schema.iter_fields(kind)]
    of_plugins = plugin_keys() if SWEEPER in sweep_groups(command) else []
    files = [*groups(command), *sweep_groups(command), *(plugin_groups() if of_plugins else [])]
    known = [*files, *keys, *sweep_key_names(command), *of_plugins]
    for override in overrides:
        key = override.key_or_group
        text = one_line(override.input_line)
        if override.package is not None:
            raise BadInput(f"{text}: no such key or group; Hydra's packages (@) are not used here")
        if key not in known and not key.startswith(tuple(f"{name}." for name in of_plugins)):
            raise_unknown_key(kind, key, text, known, command)
        if key.startswith((*SWEEP_PREFIXES, LAUNCHER, SWEEPER)) and override.is_sweep_override():
            raise BadInput(f"{text}: is the same for all points and can't be swept")
        if key in files:
            check_choice(override, optional=key in optional_groups(command))


def raise_unknown_key(kind: type[ConfigModel], key: str, text: str, known: list[str], command: str) -> NoReturn:
    """Raise BadInput with the nearest existing key."""
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        mine = [name for group in sweep_groups(command) for name in (group.replace("/", "."), group[: len("hydra/l")])]
        if not key.startswith(tuple(mine)):
            raise BadInput(f"{text}: {explain_hydra_key(key)}")
        near = [name for name in known if name.startswith("hydra")]
        raise BadInput(schema.describe_unknown_key(sweep_fields().items(), key, near, "key or group"))
    if inside := [name for name in known if name.startswith(key + ".")]:
        raise BadInput(f"{text}: a group of keys; set one of {', '.join(inside[:6])}")
    raise BadInput(schema.describe_unknown_key(schema.iter_fields(kind), key, known, "key or group"))


def check_choice(override: Override, optional: bool) -> None:
    """Raise BadInput unless the chosen file exists in its group."""
    group = override.key_or_group
    options = sorted(choices(group) + (plugin_names(group) if group.startswith("hydra/") else []))
    swept = override.is_sweep_override()
    if override.is_interval_sweep():
        raise BadInput(f"{one_line(override.input_line)}: needs names; allowed: {', '.join(options)}")
    chosen = list(itertools.islice(override.sweep_string_iterator(), MAX_POINTS)) if swept else [override.value()]
    for name in chosen:
        if name is None and optional:
            continue
        if name in (None, ""):
            raise BadInput(f"{group}={name or ''}: needs a value; allowed: one of {', '.join(options)}")
        if name not in options:
            text = one_line(f"{group}={name}")
            if package := PIP.get(group, {}).get(str(name)):
                raise BadInput(f"{text}: this plugin is not installed: pip install {package}")
            raise BadInput(
                f"{text}: no such choice; allowed: one of {', '.join(options)}{hint(PurePath(str(name)).stem, options)}"
            )


@dataclass(frozen=True)
class Value:
    """A value of a key, as typed and as Hydra reads it."""

    key: str
    text: str
    value: Any


def first_value(override: Override, multirun: bool) -> Value:
    """Return the first value of an override, or the text of an interval. Raises BadInput as `expand_values`."""
    if multirun and override.is_interval_sweep():
        return Value(override.key_or_group, str(override.input_line).partition("=")[2], None)
    return expand_values(override, multirun, 1)[0]


def expand_values(override: Override, multirun: bool, most: int = MAX_POINTS + 1) -> list[Value]:
    """Return the first `most` values of an override. Raises BadInput for several values without `-m`."""
    text, key = str(override.input_line), override.key_or_group
    if not override.is_sweep_override():
        return [Value(key, text.partition("=")[2], override.value())]
    if not multirun:
        raise BadInput(f"{one_line(text)}: several values are a sweep and need -m")
    if not override.is_discrete_sweep():
        takers = "hydra/sweeper=optuna takes intervals, and so does hydra/sweeper=asha hydra.sweeper.sampler=tpe"
        raise BadInput(f"{one_line(text)}: a sweep needs a list of values; {takers}")
    try:
        texts = list(itertools.islice(override.sweep_string_iterator(), most))
    except (HydraException, ValueError) as error:
        raise BadInput(f"{one_line(text)}: {str(error).splitlines()[0]}") from None
    if not texts:
        raise BadInput(f"{one_line(text)}: an empty sweep")
    if len(texts) > MAX_POINTS:  # parsing them would take seconds
        raise BadInput(f"{one_line(text)}: too many points; allowed: at most {MAX_POINTS:,}")
    return [Value(key, value, parse_override(f"{key}={value}").value()) for value in texts]
