"""Write docs/configuration.md from the schemas and the YAML files:  python -m cli.help > docs/configuration.md"""

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cli import commands, config_files
from cli.config_files import choices, groups, optional_groups
from cli.launcher_config import JobLauncher, LaunchConfig, LocalLauncher, SlurmLauncher
from cli.quoting import format_for_hydra
from cli.sweep_config import Asha, Halving, Search, SweepConfig
from cli.sweep_keys import LAUNCHER, LAUNCHER_KEYS, SWEEP_KEYS, SWEEPER, SWEEPER_KEYS, sweep_groups
from cli.sweep_request import read_sweep
from nanogpt import schema
from nanogpt.config import TargetsConfig, TrainConfig, TrainedConfig
from nanogpt.schema import ConfigModel

Kind = type[BaseModel]

COMMANDS: dict[str, tuple[str, type[ConfigModel]]] = {  # help page -> how it is typed, and its config
    name: (f"python {command.script}" if command.script else f"nanogpt {name}", command.config)
    for name, command in commands.COMMANDS.items()
    if command.config is not LaunchConfig
} | {"launch": ("nanogpt status", LaunchConfig)}
SHARED: dict[Kind, str] = {  # base classes of several commands' configs, with their headings
    TrainedConfig: "A trained model",
    TargetsConfig: "Studies and runs",
    JobLauncher: "Jobs",
}
SWEEPS: list[tuple[str, str, Kind]] = [  # heading, beginning of the keys, class
    ("sweep", SWEEP_KEYS, SweepConfig),
    ("hydra/sweeper=halving", SWEEPER_KEYS, Halving),
    ("hydra/sweeper=asha", SWEEPER_KEYS, Asha),
    ("hydra/sweeper=optuna", SWEEPER_KEYS, Search),
    ("hydra/launcher=submitit_local", LAUNCHER_KEYS, LocalLauncher),
    ("hydra/launcher=submitit_slurm", LAUNCHER_KEYS, SlurmLauncher),
]
TAGS = ("executor", "method")  # say which class a file is for; set by files only
WIDTH = 120

INTRODUCTION = """\
# Configuration

Every key of every command, and every file of every group. This page is generated, and a test compares it with the code.
To change it, edit the descriptions in `nanogpt/config/` or the first lines of the files in `conf/`, then run:

```sh
python -m cli.help > docs/configuration.md
```

A command takes `group=file`, which chooses a file of `conf/<group>/`, and `key=value`, which overrides every file:
`python train.py model=gpt2 data=openwebtext optimizer.lr=3e-4`. `python train.py --help optimizer` prints a part of
this page, `python train.py --cfg job` the resulting configuration. `null` means no value, lists are written `[a,b]`,
texts with blanks are quoted.

*Default* is the value of a key that no file sets. `train.py` uses some files by default; *from files* is the value that
they set.

Whether a key of `train.py` may change when a run continues:

- **free**: it may; the value is not part of the run's identity.
- **guarded**: it may if `resume.run` names the run and `resume.allow_change` the key; otherwise the value is part of
  the run's identity, and another value starts another run.
- **fixed**: never; another value starts another run.

The keys of other commands are all free."""


def render_page() -> str:
    """Return the whole document."""
    page = KeySections()
    parts = [INTRODUCTION, "## Commands", render_overview(), "## Groups", *map(render_group, all_groups())]
    parts += [page.render_class(f"## {SHARED[base]}", base) for base in (TrainedConfig, TargetsConfig)]
    for name, (command, kind) in COMMANDS.items():
        chosen = read_sweep("train", TrainConfig, []).points[0].config if name == "train" else None
        parts.append(page.render_class(f"## {command}", kind, "", dict(schema.iter_values(chosen)) if chosen else {}))
        if name == "train":
            parts += page.render_sweeps()
    return "\n\n".join(part for part in parts if part) + "\n"


def render_overview() -> str:
    """Return a list of the commands with their groups."""
    items: list[str] = []
    for name, (command, kind) in COMMANDS.items():
        mine = ", ".join(map(link, [*groups(name), *sweep_groups(name)]))
        items.append(f"{link(command)}: {summary(kind)}" + (f" Groups: {mine}." if mine else ""))
    return bullets(items)


def all_groups() -> list[str]:
    """Return the groups of all commands, in the order of the commands."""
    found = [group for command in COMMANDS for group in (*groups(command), *sweep_groups(command))]
    return list(dict.fromkeys(found))


def render_group(group: str) -> str:
    """Return the section of a group: its commands, its default and its files."""
    users = [name for name in COMMANDS if group in (*groups(name), *sweep_groups(name))]
    usual: dict[str, list[str]] = {}
    for name in users:
        usual.setdefault(default_file(name, group), []).append(name)
    defaults = ", ".join(f"{file} ({', '.join(names)})" if len(usual) > 1 else file for file, names in usual.items())
    text = f"Group of {', '.join(link(COMMANDS[name][0]) for name in users)}. Default: {defaults}."
    files = [f"`{group}={file}`: {escape(read_comment(group, file))}" for file in choices(group)]
    return f"### {group}\n\n{wrap(text)}\n\n{bullets(files)}"


def default_file(command: str, group: str) -> str:
    """Return the file of a group that a command uses if none is chosen, or "none"."""
    if group in (LAUNCHER, SWEEPER):
        return "`basic`"
    text = config_files.CONFIG_DIR.joinpath(f"{command}.yaml").read_text()
    found = re.search(rf"^  - {re.escape(group)}: (\S+)$", text, re.MULTILINE)
    return f"`{found[1]}`" if found and group not in optional_groups(command) else "none"


def read_comment(group: str, file: str) -> str:
    """Return the comment at the top of a YAML file, without its indented lines (commands)."""
    found: list[str] = []
    for line in config_files.CONFIG_DIR.joinpath(f"{group}/{file}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(("# @package", "#  ")):
            found.append(line.lstrip("# "))
    return " ".join(found)


class KeySections:
    """The sections about keys. Each class is described once; later mentions are links."""

    def __init__(self) -> None:
        self.rendered: set[Kind] = set()
        self.training = set(sections(TrainConfig))

    def render_class(self, heading: str, kind: Kind, prefix: str = "", chosen: dict[str, Any] | None = None) -> str:
        """Return the section of a class: its own keys, then subsections for its groups of keys.

        `chosen` has the values of all keys after the default files.
        """
        self.rendered.add(kind)
        base = find_base(kind)
        inherited = {*(base.model_fields if base else ()), *TAGS}
        own = [(name, field, section_of(field)) for name, field in kind.model_fields.items() if name not in inherited]
        more = f" Takes the keys of {link(heading_of(base))}{' and:' if own else '.'}" if base else ""
        keys = [(prefix + name, field) for name, field, inner in own if inner is None]
        parts = [heading, wrap(summary(kind) + more), self.render_keys(keys, kind, chosen or {})]
        known = [f"`{prefix}{name}.…`: {link(inner.__name__)}" for name, _, inner in own if inner in self.rendered]
        parts.append(wrap(f"Described elsewhere: {', '.join(known)}.") if known else "")
        for name, _, inner in own:
            if inner is not None and inner not in self.rendered:
                parts.append(self.render_class(f"### {inner.__name__}", inner, f"{prefix}{name}.", chosen))
        return "\n\n".join(part for part in parts if part)

    def render_sweeps(self) -> list[str]:
        """Return the sections about sweeps."""
        parts = ["## Sweeps: python train.py -m", "Not part of a run: [studies.md](studies.md), [slurm.md](slurm.md)."]
        for heading, prefix, kind in SWEEPS:
            if kind is LocalLauncher:
                parts.append(self.render_class(f"### {SHARED[JobLauncher]}", JobLauncher, LAUNCHER_KEYS))
            parts.append(self.render_class(f"### {heading}", kind, prefix))
        return parts

    def render_keys(self, keys: list[tuple[str, FieldInfo]], kind: Kind, chosen: dict[str, Any]) -> str:
        """Return a list of keys of a class: meaning, allowed values, default, change policy."""
        items: list[str] = []
        for key, field in keys:
            default = format_for_hydra(field.default)
            facts = [schema.describe_allowed(field), f"default `{default}`" if default != "''" else "default empty"]
            if key in chosen and chosen[key] != field.default:
                facts.append(f"from files `{format_for_hydra(chosen[key])}`")
            facts += [schema.change_policy(field) or ""] if kind in self.training else []
            items.append(f"`{key}`: {escape(field.description or '')}.\nTakes: {escape('; '.join(facts))}.")
        return bullets(items)


def find_base(kind: Kind) -> Kind | None:
    """Return the base class of a command's or launcher's config that has its own section, or None."""
    known = {*SHARED, *(config for _, config in COMMANDS.values())}
    return next((base for base in kind.__mro__[1:] if base in known), None)


def heading_of(base: Kind) -> str:
    """Return the heading of a class from which others inherit."""
    return next((command for command, kind in COMMANDS.values() if kind is base), None) or SHARED[base]


def section_of(field: FieldInfo) -> Kind | None:
    """Return the class of a group of keys; None for a key."""
    kind: Any = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def sections(kind: Kind) -> Iterator[Kind]:
    """Yield a class and the classes of all its groups of keys."""
    yield kind
    for field in kind.model_fields.values():
        if (inner := section_of(field)) is not None:
            yield from sections(inner)


def summary(kind: Kind) -> str:
    """Return the docstring of a class on one line."""
    return escape(" ".join((kind.__doc__ or "").split()))


def link(heading: str) -> str:
    return f"[{heading}](#{slug(heading)})"


def slug(heading: str) -> str:
    """Return the anchor that Markdown renderers give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def escape(text: str) -> str:
    """Return a text that Markdown shows unchanged, but for code in backticks."""
    return re.sub(r"([*\\])", r"\\\1", text).replace("<", "&lt;")


def bullets(items: list[str]) -> str:
    """Return a Markdown list; line breaks within an item are kept."""
    return "\n".join(
        wrap("- " + line if not i else "  " + line) for item in items for i, line in enumerate(item.split("\n"))
    )


def wrap(text: str) -> str:
    """Return a paragraph or the lines of a list item in at most `WIDTH` columns, code and links unbroken."""
    whole = re.sub(r"`[^`]+`|\[[^\]]*\]\([^)]*\)", lambda found: found[0].replace(" ", "\0"), text)
    indent = "  " if text.startswith(("- ", "  ")) else ""
    wrapped = textwrap.fill(whole, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return wrapped.replace("\0", " ")


if __name__ == "__main__":
    print(render_page(), end="")
