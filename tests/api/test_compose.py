"""Configs composed from Python: those of the command line, its messages as exceptions, and Hydra left as it was."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import nanogpt
from cli.sweep_request import read_configs
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput

ROOT = Path(__file__).parents[2]
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
        ("status", [], "status: no such command; allowed: train, "),
        ("train", ["optimizer.lrr=1"], "optimizer.lrr: no such key or group; did you mean 'optimizer.lr'"),
        ("train", ["optimizer.lr=fast"], "optimizer.lr=fast: "),
        ("train", ["optimizer.lr=1e-3,1e-4"], "-m"),
        ("train", "model=tiny", "overrides=model=tiny: allowed: a list of strings"),
    ],
)
def test_the_messages_are_those_of_the_command_line(command: str, overrides: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        nanogpt.compose(command, overrides)


USER_OF_HYDRA = """
import sys
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

with initialize_config_dir(sys.argv[1], version_base="1.3"):
    assert compose("mine").depth == 3
    launchers = set(ConfigStore.instance().repo["hydra"]["launcher"])
    import nanogpt

    for _ in range(2):
        assert nanogpt.compose("train", ["model=tiny"]).model.n_layer == 4
        assert compose("mine").depth == 3
    assert set(ConfigStore.instance().repo["hydra"]["launcher"]) == launchers
assert not GlobalHydra.instance().is_initialized()
"""


def test_a_program_that_uses_hydra_itself_keeps_its_state(tmp_path: Path) -> None:
    """In a process of its own: other tests leave our configs in Hydra's store."""
    (tmp_path / "mine.yaml").write_text("depth: 3\n")
    command = [sys.executable, "-c", USER_OF_HYDRA, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_compose_at_the_same_time() -> None:
    rates = [n / 10_000 for n in range(1, 9)]
    with ThreadPoolExecutor(4) as pool:
        configs = list(pool.map(nanogpt.compose, ["train"] * 8, [[f"optimizer.lr={rate}"] for rate in rates]))
    assert [config.optimizer.lr for config in configs] == rates
