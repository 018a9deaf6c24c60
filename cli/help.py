"""docs/configuration.md from the schemas and the YAML files:  python -m cli.help > docs/configuration.md"""

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cli import commands, config_files
from cli.config_files import choices, groups, optional_groups
from cli.entry import plain
from cli.launcher_config import JobLauncher, LaunchConfig, LocalLauncher, SlurmLauncher
from cli.overrides import LAUNCHER, LAUNCHER_KEYS, SWEEP_KEYS, SWEEPER, SWEEPER_KEYS, sweep_groups
from cli.sweep_config import Halving, Search, SweepConfig
from cli.sweep_request import read_sweep
from nanogpt import schema
from nanogpt.config import TargetsConfig, TrainConfig, TrainedConfig
from nanogpt.schema import ConfigModel

Kind = type[BaseModel]

COMMANDS: dict[str, tuple[str, type[ConfigModel]]] = {  # help page -> how it is typed, and what it takes
    name: (f"python {command.script}" if command.script else f"nanogpt {name}", command.config)
    for name, command in commands.COMMANDS.items()
    if command.config is not LaunchConfig
} | {"launch": ("nanogpt status", LaunchConfig)}
SHARED: dict[Kind, str] = {  # what several commands take and none is alone: the heading, and who takes it
    TrainedConfig: "A trained model",
    TargetsConfig: "Studies and runs",
    JobLauncher: "Jobs",
}
ASIDE: list[tuple[str, str, Kind]] = [  # about sweeps: heading, beginning of the keys, class
    ("sweep", SWEEP_KEYS, SweepConfig),
    ("hydra/sweeper=halving", SWEEPER_KEYS, Halving),
    ("hydra/sweeper=optuna", SWEEPER_KEYS, Search),
    ("hydra/launcher=submitit_local", LAUNCHER_KEYS, LocalLauncher),
    ("hydra/launcher=submitit_slurm", LAUNCHER_KEYS, SlurmLauncher),
]
UNTOLD = ("executor", "method")  # what a file is, never set by a person

INTRODUCTION = """\
# Configuration

Every key of every command, and every file of every group. This page is written from the code, and a test compares;
change the descriptions in `nanogpt/config/` or the first lines of the files in `conf/`, then write it again:

```sh
python -m cli.help > docs/configuration.md
```

A command takes `group=file`, which chooses a file of `conf/<group>/`, and `key=value`, which wins over every file:
`python train.py model=gpt2 data=openwebtext optimizer.lr=3e-4`. `python train.py --help optimizer` says the same as
here, `python train.py --cfg job` what comes of it all. `null` is no value, lists are `[a,b]`, texts with blanks are
quoted.

In the tables *default* is what a key has where no file sets it. Of `train.py` the files that are chosen by themselves
set some: *as chosen* is what is left in the end, where it is something else. *When a run continues*: a key that is

- **free** may change, and is not part of the run's identity: the same run is found whatever it is;
- **guarded** may change where `resume.run` names the run and `resume.allow_change` the key, else it is another run;
- **fixed** never changes within a run: another value is another run.

Commands that don't train have free keys alone, and their tables don't say so."""


def render_page() -> str:
    """The whole document."""
    parts = [INTRODUCTION, overview(), "## Groups", *map(group, every_group())]
    training = set(sections(TrainConfig))
    chosen = dict(schema.iter_values(read_sweep("train", TrainConfig, []).points[0].config))
    told: set[Kind] = set()
    for base in (TrainedConfig, TargetsConfig):
        parts.append(chapter(f"## {SHARED[base]}", base, "", told, training, {}))
    for name, (command, kind) in COMMANDS.items():
        parts.append(chapter(f"## {command}", kind, "", told, training, chosen if name == "train" else {}))
        if name == "train":
            parts += aside(told)
    return "\n\n".join(part for part in parts if part) + "\n"


def overview() -> str:
    """Each command with what it is for and the groups it has."""
    rows = [
        [link(command), doc(kind), ", ".join(map(link, [*groups(name), *sweep_groups(name)]))]
        for name, (command, kind) in COMMANDS.items()
    ]
    return "## Commands\n\n" + table(["command", "what it takes", "groups"], rows)


def every_group() -> list[str]:
    """The groups of all commands, in the order they are met."""
    found = [name for door in COMMANDS for name in (*groups(door), *sweep_groups(door))]
    return list(dict.fromkeys(found))


def group(name: str) -> str:
    """A group with its files and who chooses one."""
    takes = [door for door in COMMANDS if name in (*groups(door), *sweep_groups(door))]
    usual = {door: default_of(door, name) for door in takes}
    firsts = {f"`{file}`" if file else "none" for file in usual.values()}
    first = firsts.pop() if len(firsts) == 1 else ", ".join(f"{file or 'none'} in {d}" for d, file in usual.items())
    rows = [[f"`{name}={file}`", cell(about(name, file))] for file in choices(name)]
    commands = ", ".join(link(COMMANDS[door][0]) for door in takes)
    return f"### {name}\n\nFor {commands}. Chosen by itself: {first}.\n\n" + table(["choice", "what it is"], rows)


def default_of(door: str, name: str) -> str | None:
    """The file of a group that a command takes where none is named."""
    if name in (LAUNCHER, SWEEPER):
        return "basic"
    if name in optional_groups(door):
        return None
    text = config_files.CONFIG_DIR.joinpath(f"{door}.yaml").read_text()
    found = re.search(rf"^  - {re.escape(name)}: (\S+)$", text, re.MULTILINE)
    return found[1] if found else None


def about(name: str, file: str) -> str:
    """The comment a YAML file begins with; indented lines of it are commands."""
    said: list[str] = []
    for line in config_files.CONFIG_DIR.joinpath(f"{name}/{file}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(("# @package", "#  ")):
            said.append(line.lstrip("# "))
    return " ".join(said)


def chapter(heading: str, kind: Kind, prefix: str, told: set[Kind], training: set[Kind], chosen: dict[str, Any]) -> str:
    """A class: its own keys, then each of its sections that wasn't told of yet, one level below."""
    told.add(kind)
    base = find_base(kind)
    old = {*(base.model_fields if base else ()), *UNTOLD}
    mine = [(name, field) for name, field in kind.model_fields.items() if name not in old]
    more = f" All of {link(headings(base))}{', and:' if mine else '.'}" if base else ""
    parts = [heading, doc(kind) + more]
    below = [(name, field, section_of(field)) for name, field in mine]
    keys = [(prefix + name, field) for name, field, inner in below if inner is None]
    if keys:
        parts.append(keys_table(keys, kind in training, chosen))
    elsewhere = [f"`{prefix}{name}.…`: {link(title(inner))}" for name, _, inner in below if inner in told and inner]
    parts += ["As there: " + ", ".join(elsewhere) + "."] if elsewhere else []
    for name, _, inner in below:
        if inner is not None and inner not in told:
            parts.append(chapter(f"### {title(inner)}", inner, f"{prefix}{name}.", told, training, chosen))
    return "\n\n".join(parts)


def aside(told: set[Kind]) -> list[str]:
    """What is about sweeps."""
    parts = [
        "## Sweeps: python train.py -m",
        "None of this is part of a run: [studies.md](studies.md), [slurm.md](slurm.md).",
    ]
    jobs = [(LAUNCHER_KEYS + name, field) for name, field in JobLauncher.model_fields.items()]
    for heading, prefix, kind in ASIDE:
        if kind is LocalLauncher:
            parts += [f"### {SHARED[JobLauncher]}", doc(JobLauncher), keys_table(jobs, False, {})]
        parts.append(chapter(f"### {heading}", kind, prefix, told, set(), {}))
    return parts


def keys_table(keys: list[tuple[str, FieldInfo]], training: bool, chosen: dict[str, Any]) -> str:
    """Keys with all that the schema says of them."""
    names = ["key", "takes", "default", *(["as chosen"] if chosen else [])]
    names += [*(["when a run continues"] if training else []), "meaning"]
    rows: list[list[str]] = []
    for key, field in keys:
        default = plain(field.default)
        row = [f"`{key}`", cell(describe_values(field)), f"`{default}`" if default else "empty"]
        if chosen:
            value = plain(chosen[key])
            row.append("" if chosen[key] == field.default else f"`{value}`")
        row += [schema.change_policy(field) or ""] if training else []
        rows.append([*row, cell(field.description or "")])
    return table(names, rows)


def describe_values(field: FieldInfo) -> str:
    """What a key takes, without bounds that only keep numbers within 64 bits."""
    return re.sub(rf"in \[(\d+), ({2**53}\]|{2**63}\))", r"of \1 or more", schema.describe_allowed(field))


def table(names: list[str], rows: list[list[str]]) -> str:
    """Rows as Markdown."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def find_base(kind: Kind) -> Kind | None:
    """The class whose chapter tells the rest of the keys: of commands and launchers, not of sections."""
    known = {*SHARED, *(one for _, one in COMMANDS.values())}
    return next((base for base in kind.__mro__[1:] if base in known), None)


def headings(kind: Kind) -> str:
    """The heading of a class that others inherit from."""
    return next((command for command, one in COMMANDS.values() if one is kind), None) or SHARED[kind]


def section_of(field: FieldInfo) -> Kind | None:
    """The class of a group of keys; None for a key."""
    kind: Any = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def sections(kind: Kind) -> Iterator[Kind]:
    """A class and those of all its groups of keys."""
    yield kind
    for field in kind.model_fields.values():
        if (inner := section_of(field)) is not None:
            yield from sections(inner)


def title(kind: Kind) -> str:
    """The heading of a section."""
    return kind.__name__


def doc(kind: Kind) -> str:
    """What a class says of itself, on one line."""
    return cell(" ".join((kind.__doc__ or "").split()))


def link(heading: str) -> str:
    return f"[{heading}](#{slug(heading)})"


def slug(heading: str) -> str:
    """The anchor that Markdown renderers give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def cell(text: str) -> str:
    """A text as it is, inside a table."""
    return re.sub(r"([|*\\])", r"\\\1", text).replace("<", "&lt;").replace("\n", " ")


if __name__ == "__main__":
    print(render_page(), end="")
