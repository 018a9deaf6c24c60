"""Compose the config of a command from YAML files and overrides, as its command line does."""

import copy
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Literal, overload

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from cli.argv import split_search_path
from cli.commands import COMMANDS, JOBS
from cli.config_files import search_in
from cli.sweep_request import read_configs
from nanogpt.config import BenchConfig, EvaluateConfig, PrepareConfig, SampleConfig, TrainConfig
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.schema import ConfigModel

LOCK = threading.Lock()  # Hydra keeps its state in singletons


@overload
def compose(command: Literal["train"], overrides: Sequence[str] = ()) -> TrainConfig: ...
@overload
def compose(command: Literal["prepare"], overrides: Sequence[str] = ()) -> PrepareConfig: ...
@overload
def compose(command: Literal["sample"], overrides: Sequence[str] = ()) -> SampleConfig: ...
@overload
def compose(command: Literal["evaluate"], overrides: Sequence[str] = ()) -> EvaluateConfig: ...
@overload
def compose(command: Literal["bench"], overrides: Sequence[str] = ()) -> BenchConfig: ...
@overload
def compose(command: str, overrides: Sequence[str] = ()) -> ConfigModel: ...
def compose(command: str, overrides: Sequence[str] = ()) -> ConfigModel:
    """Return the checked config of a command, such as `compose("train", ["model=tiny", "optimizer.lr=1e-3"])`.

    Works in any thread, and inside a program that has initialised Hydra itself, whose state it leaves as it was.
    Raises BadInput with the message of the command line.
    """
    known = [name for name, about in COMMANDS.items() if about.group != JOBS]  # those take words, not a config
    if command not in known:
        raise BadInput(f"{one_line(command)}: no such command; allowed: {', '.join(known)}{hint(command, known)}")
    if isinstance(overrides, str):
        raise BadInput(f"overrides={one_line(overrides)}: allowed: a list of strings, such as [{overrides!r}]")
    folders, words = split_search_path(overrides)
    with LOCK, keep_hydra_state(), search_in(folders):
        (config,) = read_configs(command, COMMANDS[command].config, words)
    return config


@contextmanager
def keep_hydra_state() -> Generator[None, None, None]:
    """Give Hydra's singletons back afterwards: its initialisation, and the configs of plugins that ours replace."""
    Plugins.instance()  # plugins store their configs when this is called first
    store = ConfigStore.instance()
    hydra, repo = GlobalHydra.instance().hydra, copy.deepcopy(store.repo)
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, store.repo = hydra, repo
