"""Points of a command line, against those that Hydra's own sweeper makes of it."""

from collections import Counter

import pytest
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from cli.sweep_request import read_configs, read_sweep
from nanogpt.config import TrainConfig
from tests.conftest import ROOT


def split_with_hydra(words: list[str]) -> list[list[str]]:
    """Return the overrides of each point by Hydra's basic sweeper."""
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(words)
        return [point for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for point in batch]


def read_points(words: list[str]) -> list[str]:
    return [point.config.model_dump_json() for point in read_sweep("train", TrainConfig, words, multirun=True).points]


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer.lr=1e-3,3e-4", "model.dropout=0,0.1"],
        ["optimizer.lr=choice(1e-3,3e-4)", "training.seed=choice(1)"],
        ["model.n_layer=range(1,4)", "training.seed=range(5)"],
        ["model.n_layer=range(6,1,-2)", "model.dropout=range(0,0.5,0.2)"],
        ["model.n_layer=range(start=1,stop=6,step=2)"],
        ["model.n_layer=sort(3,1,2)", "optimizer.lr=sort(1e-3,3e-4,reverse=true)"],
        ["model.n_layer=sort(range(1,4),reverse=true)"],
        ["model.n_layer=tag(small,choice(1,2))", "optimizer.lr=tag(a,b,sort(1e-3,3e-4))"],
        ["model.n_layer=int(choice('1','2'))", "model.dropout=float(choice(0,0.5))", "optimizer.lr=float(choice(1,2))"],
        ["model=glob(gpt2*)"],
        ["model=glob([t*,gpt2_*],exclude=*xl)", "training.seed=1,2"],
        ["model=choice(tiny,gpt2)", "schedule=glob(*)"],
        ["data.source='a, b.txt',c.txt", "data=text", "model.bias=true,false"],
    ],
)
def test_same_points_in_the_same_order(words: list[str]) -> None:
    by_hydra = [read_configs("train", TrainConfig, point)[0].model_dump_json() for point in split_with_hydra(words)]
    assert len(by_hydra) > 1 and read_points(words) == by_hydra


@pytest.mark.parametrize(
    "words", [["model.n_layer=shuffle(1,2,3,4,5,6)"], ["model.n_layer=shuffle(range(1,20))", "training.seed=1,2"]]
)
def test_shuffled_values_are_the_same_points(words: list[str]) -> None:
    by_hydra = [read_configs("train", TrainConfig, point)[0].model_dump_json() for point in split_with_hydra(words)]
    assert Counter(read_points(words)) == Counter(by_hydra)
    assert any(read_points(words) != read_points(words) for _ in range(9))  # by chance
