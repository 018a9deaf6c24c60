"""Overrides -> Hydra's compose -> plain dict -> typed config, with every refusal in our own words.

Hydra alone accepts `+new.key=1`, `~model`, a key given twice and `optimizer.lr=-1`, and its advice for a typo is to add
the key. So overrides are checked here first, against the groups on disk and the keys of the schema.
"""

import itertools
import math
import re
from collections.abc import Iterator
from functools import reduce
from typing import Any, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from conf.groups import choices, groups
from nanogpt import schema
from nanogpt.errors import BadInput, escaped, hint
from nanogpt.interop.sources import adopted
from nanogpt.schema import Section

Config = TypeVar("Config", bound=Section)

HORIZON = ("training.steps", "training.tokens", "training.tokens_per_param", "training.flops")
MOST_POINTS = 100_000
SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)


def points(door: str, kind: type[Config], overrides: list[str], multirun: bool = False) -> list[Config]:
    """One checked config for every point of the sweep; one point without `-m`. Raises BadInput; creates nothing."""
    literals, rest = take_literals(kind, overrides)
    parsed = [parse(text) for text in rest]
    register(door, kind)
    with initialize_config_module("conf", version_base="1.3"):
        swept = [expand(override, multirun) for override in parsed]
        check_keys(door, kind, parsed)
        if math.prod(map(len, swept)) > MOST_POINTS:
            raise BadInput(f"-m: {math.prod(map(len, swept)):,} points; allowed: at most {MOST_POINTS:,}")
        return [one_point(door, kind, list(point), literals) for point in itertools.product(*swept)]


def take_literals(kind: type[Section], overrides: list[str]) -> tuple[dict[str, str], list[str]]:
    """({key: value} of free-text keys, the other overrides). A value in quotes is left to Hydra."""
    extras = {key: field.json_schema_extra for key, field in schema.leaves(kind)}
    free = {key for key, extra in extras.items() if isinstance(extra, dict) and extra.get("literal")}
    literals: dict[str, str] = {}
    rest: list[str] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if equals and key in free and not (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
            if key in literals:
                raise BadInput(f"{escaped(text)}: {key} is given twice")
            literals[key] = value
        else:
            rest.append(text)
    return literals, rest


def register(door: str, kind: type[Section]) -> None:
    """Give Hydra every key of the schema with its default, so YAML files need only say what they choose."""
    ConfigStore.instance().store(name=f"{door}_schema", node=schema.defaults(kind))


def parse(text: str) -> Override:
    """One override. Raises BadInput with the reason in a few words."""
    key, equals, _ = text.partition("=")
    plain = escaped(text)
    if text.startswith("~"):
        raise BadInput(f"{plain}: keys can't be deleted; set a value with key=value")
    if text.startswith("+"):
        raise BadInput(f"{plain}: keys can't be added; every key that exists is listed by --help all")
    if not equals:
        raise BadInput(f"{plain}: not an override; write key=value")
    if not key:
        raise BadInput(f"{plain}: the key before '=' is missing")
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, RecursionError):
        odd = next((c for c in text if not c.isascii()), None)
        why = f"the character '{odd}' needs quotes" if odd else "can't be read; check the quotes and brackets"
        raise BadInput(f"{plain}: {why}, e.g. {escaped(key)}=\"'…'\"") from None


def check_keys(door: str, kind: type[Section], overrides: list[Override]) -> None:
    """Every override names a group or a key that exists, once, and a choice that exists."""
    keys = [key for key, _ in schema.leaves(kind)]
    known = [*groups(door), *keys]
    seen: set[str] = set()
    for override in overrides:
        key = override.key_or_group
        text = escaped(override.input_line)
        if key in seen:
            raise BadInput(f"{text}: {key} is given twice")
        if override.package is not None:
            raise BadInput(f"{text}: no such key or group; '@' is for Hydra's packages, which aren't used here")
        seen.add(key)
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            raise BadInput(f"{text}: Hydra's own settings can't be changed here")
        if key not in known:
            inside = [name for name in known if name.startswith(key + ".")]
            if inside:
                raise BadInput(f"{text}: a group of keys; set one of {', '.join(inside[:6])}")
            raise BadInput(f"{escaped(key)}: no such key or group{hint(key, known)}")
        if key in groups(door):
            check_choice(override)


def check_choice(override: Override) -> None:
    """The chosen file exists in its group."""
    group = override.key_or_group
    options = choices(group)
    swept = override.is_sweep_override()
    chosen = list(itertools.islice(override.sweep_string_iterator(), MOST_POINTS)) if swept else [override.value()]
    for name in chosen:
        if name is None and group == "experiment":
            continue
        if name in (None, ""):
            raise BadInput(f"{group}={name or ''}: needs a value; allowed: one of {', '.join(options)}")
        if name not in options:
            text = escaped(f"{group}={name}")
            raise BadInput(f"{text}: no such choice; allowed: one of {', '.join(options)}{hint(str(name), options)}")


def expand(override: Override, multirun: bool) -> list[str]:
    """The overrides a comma-separated one stands for. Raises BadInput for several values without `-m`."""
    text = str(override.input_line)
    if not override.is_sweep_override():
        return [text]
    if not multirun:
        raise BadInput(f"{escaped(text)}: several values are a sweep and need -m")
    if not override.is_discrete_sweep():
        raise BadInput(f"{escaped(text)}: a sweep needs a list of values")
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MOST_POINTS + 1))
    except (HydraException, ValueError) as error:
        raise BadInput(f"{escaped(text)}: {str(error).splitlines()[0]}") from None
    if not values:
        raise BadInput(f"{escaped(text)}: an empty sweep")
    return [f"{override.key_or_group}={value}" for value in values]


def one_point(door: str, kind: type[Config], overrides: list[str], literals: dict[str, str]) -> Config:
    """Compose and check one point. `literals` are free texts that Hydra never sees."""
    given = {text.partition("=")[0] for text in overrides}
    if sum(key in given for key in HORIZON) == 1:  # the horizon asked for replaces the preset's
        overrides = [*overrides, *(f"{key}=null" for key in HORIZON if key not in given and has(kind, key))]
    weights = next((text for text in overrides if text.startswith("init_from=")), "init_from=scratch")
    if "model" in groups(door) and weights != "init_from=scratch" and not given & {"model", "experiment"}:
        overrides = [*overrides, "model=pretrained"]
    try:
        composed = compose(door, overrides)
        refuse_secrets(OmegaConf.to_container(composed))
        plain: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        name = re.sub(r".*'(.*)' not found.*", r"\1", str(error).splitlines()[0])
        keys = [key for key, _ in schema.leaves(kind)]
        raise BadInput(f"{error.full_key}: refers to the unknown key '{escaped(name)}'{hint(name, keys)}") from None
    except InterpolationResolutionError as error:
        unset = re.search(r"Environment variable '(.*)' not found", str(error))
        why = f"the environment variable {unset[1]} is not set" if unset else str(error).splitlines()[0]
        raise BadInput(f"{error.full_key}: {why}") from None
    except (HydraException, OmegaConfBaseException, RecursionError) as error:
        raise BadInput(str(error).splitlines()[0]) from None
    plain = with_weights(plain)
    for key, text in literals.items():
        *path, name = key.split(".")
        reduce(lambda inner, part: inner[part], path, plain)[name] = text
    return schema.from_dict(kind, plain)


def with_weights(plain: dict[str, Any]) -> dict[str, Any]:
    """A composed config whose model is that of the weights it starts from. Raises BadInput for a contradiction."""
    model, init_from = plain.get("model"), plain.get("init_from")
    if not isinstance(model, dict) or not isinstance(init_from, str):
        return plain
    if init_from != "scratch":
        return plain | {"model": adopted(init_from, model)}
    if model["n_layer"] is None:
        raise BadInput("model=pretrained: takes its shape from weights; say which, e.g. init_from=gpt2")
    return plain


def as_yaml(config: Section) -> str:
    """The config that would run, checked and resolved, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def has(kind: type[Section], key: str) -> bool:
    return any(key == name for name, _ in schema.leaves(kind))


def refuse_secrets(raw: object) -> None:
    """No secret environment variable may enter a config: configs are saved, shown and uploaded."""
    for text in strings(raw):
        if re.search(r"oc\.env:[^}]*\$", text):
            raise BadInput(f"{escaped(text)}: the name of an environment variable must be written out")
        for variable in re.findall(r"oc\.env:\s*([^,}\s]+)", text):
            if SECRET.search(variable):
                raise BadInput(f"{escaped(text)}: {escaped(variable)} looks like a secret and may not enter the config")


def strings(value: object) -> Iterator[str]:
    """Every string inside nested dicts and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)
