"""Find the command that trains a config again: config files first, then the keys that differ."""

import shlex
from collections.abc import Iterator, Sequence

from cli.compose import HORIZON
from cli.config_files import choices, search_overrides
from cli.quoting import format_override
from cli.sweep_request import compose_unchecked, read_sweep
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.errors import LabError
from nanogpt.schema import signature

GROUPS = ("model", "data", "optimizer", "schedule")
RUN_KEYS = ("name", "runs_dir", "new_attempt", "dry_run", "replay")  # which run it is, not what it trains


def reproduce_command(config: TrainConfig) -> str | None:
    """Return a `nanogpt train …` command that was checked to give the same config; None if there is none or weights
    would have to be read to tell.
    """
    if config.init_from != "scratch":
        return None
    commands = [command for start in candidate_files(config) if (command := build_command(config, start))]
    commands = [command for command in commands if command.isprintable()]  # else a terminal might obey it
    return min(commands, key=len, default=None)


def candidate_files(config: TrainConfig) -> Iterator[list[str]]:
    """Yield config files to start from: the experiment or the groups that the run is named after."""
    if config.name in choices("experiment"):
        yield [f"experiment={config.name}"]
    named = [(group, getattr(config, group).name) for group in GROUPS]
    files = [f"{group}={name}" for group, name in named if name in choices(group)]
    yield files
    yield [file for file in files if file.startswith(("model=", "data="))]


def build_command(config: TrainConfig, files: Sequence[str]) -> str | None:
    """Return the command that starts from these files, or None."""
    wanted = dict(schema.iter_values(config))
    source = [format_override("data.source", config.data.source)] if config.data.source is not None else []
    try:
        start = {
            key: to_tuple(value) for key, value in compose_unchecked("train", TrainConfig, [*files, *source]).items()
        }
        differing = [key for key in wanted if wanted[key] != start[key] and not is_left_out(key)]
        given = {key for key in differing if wanted[key] is not None} & set(HORIZON)
        words = [format_override(key, wanted[key]) for key in differing if key not in HORIZON or key in given]
        words = [*files, *source, *words]
        again = read_sweep("train", TrainConfig, words).points[0].config
        data = again.data.model_copy(update={"source_sha256": config.data.source_sha256})
        if signature(again.model_copy(update={"data": data})) != signature(config):
            return None
    except LabError:
        return None
    return shlex.join(["nanogpt", "train", *search_overrides(), *words])


def to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType]


def is_left_out(key: str) -> bool:
    """Return whether a key only says which run it is or how it was started; the source is given with the files."""
    return key in (*RUN_KEYS, "data.source", "data.source_sha256") or key.startswith("resume.")
