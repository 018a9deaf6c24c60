"""Configs composed from Python: those of the command line, its messages as exceptions, and Hydra left as it was."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import nanogpt
from cli.sweep_request import read_configs
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput

WORDS = ["model=tiny", "optimizer.lr=1e-3"]


def test_it_is_the_config_of_the_command_line() -> None:
    (expected,) = read_configs("train", TrainConfig, WORDS)
    package: Any = nanogpt.config
    assert nanogpt.compose("train", WORDS) == expected == package("train", WORDS)
    assert nanogpt.compose("sample", ["prompt=a b"]).prompt == "a b"


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        ("trian", [], "trian: no such command; .*did you mean 'train'"),
        ("train", ["optimizer.lrr=1"], "optimizer.lrr: no such key or group; did you mean 'optimizer.lr'"),
        ("train", ["optimizer.lr=fast"], "optimizer.lr=fast: "),
        ("train", ["optimizer.lr=1e-3,1e-4"], "-m"),
        ("train", "model=tiny", "overrides=model=tiny: allowed: a list of strings"),
    ],
)
def test_the_messages_are_those_of_the_command_line(command: str, overrides: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        nanogpt.compose(command, overrides)


def test_a_program_that_uses_hydra_itself_keeps_its_state(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("depth: 3\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        launchers = set(ConfigStore.instance().repo["hydra"]["launcher"])
        assert nanogpt.compose("train", ["model=tiny"]).model.n_layer == 4
        assert hydra_compose("mine").depth == 3
        assert set(ConfigStore.instance().repo["hydra"]["launcher"]) == launchers
    assert not GlobalHydra.instance().is_initialized()


def test_threads_compose_at_the_same_time() -> None:
    rates = [n / 10_000 for n in range(1, 9)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda rate: nanogpt.compose("train", [f"optimizer.lr={rate}"]).optimizer.lr, rates))
    assert found == rates
