"""Launchers and sweepers of Hydra plugins: Hydra's own basic ones as if installed by others, and the real joblib."""

import copy
import json
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from cli import plugin_config, sweep_request
from cli.argv import split_search_path
from cli.compose import Composer, register_schemas
from cli.config_files import search_in
from cli.sweep_request import Sweep, read_sweep
from launch import plugins
from launch.sweep import run_sweep
from nanogpt.config import TrainConfig
from nanogpt.errors import STOPPED, BadInput, Diverged
from nanogpt.run_directory import RunDirectory, locate_run
from tests.launch.jobs import Lab
from tests.launch.test_search import Trained

Plugins.instance()  # imports Hydra's own plugins, again if they were
BASIC = "hydra._internal.core_plugins.basic_"
BasicLauncher: Any = import_module(f"{BASIC}launcher").BasicLauncher
BasicSweeper: Any = import_module(f"{BASIC}sweeper").BasicSweeper
LR, DROPOUT = "optimizer.lr=1e-3,1e-2", "model.dropout=0,0.1"


@dataclass
class LauncherConfig:
    _target_: str = "hydra_plugins.lab.PluginLauncher"
    at_once: int = 2
    places: dict[str, Any] = field(default_factory=dict)


@dataclass
class PartConfig:
    _target_: str = "hydra_plugins.lab.Part"
    seed: int = 0


@dataclass
class SweeperConfig:
    _target_: str = "hydra_plugins.lab.PluginSweeper"
    defaults: list[Any] = field(default_factory=lambda: [{"part": "first"}])
    part: Any = None
    max_batch_size: int | None = None
    params: dict[str, str] | None = None
    custom_search_space: str | None = None


class PluginLauncher(BasicLauncher):
    """Hydra's launcher, with the keys of `LauncherConfig`."""

    def __init__(self, at_once: int, places: Any) -> None:
        super().__init__()


class Part:
    """A part of the sweeper that its config names."""

    def __init__(self, seed: int) -> None:
        self.seed = seed


class PluginSweeper(BasicSweeper):
    """Hydra's sweeper, which sweeps a grid, with a part."""

    parts: list[int] = []  # noqa: RUF012

    def __init__(self, part: Part, custom_search_space: str | None, **more: Any) -> None:
        super().__init__(**more)
        self.parts.append(part.seed)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Lab, None, None]:
    """Give an empty folder, and a plugin package with a launcher and a sweeper."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_request, "Composer", Composer)
    monkeypatch.setattr(sweep_request, "register_schemas", register_schemas)
    known, module, store = plugin_config.stored_configs(), ModuleType("hydra_plugins.lab"), ConfigStore.instance()
    repo = copy.deepcopy(store.repo)
    monkeypatch.setitem(sys.modules, "hydra_plugins", sys.modules.get("hydra_plugins", ModuleType("hydra_plugins")))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for kind in (PluginLauncher, PluginSweeper, Part):
        monkeypatch.setattr(kind, "__module__", module.__name__)
        setattr(module, kind.__name__, kind)
    Plugins.instance().register(PluginLauncher)
    Plugins.instance().register(PluginSweeper)
    store.store(group="hydra/launcher", name="pairs", node=LauncherConfig)
    store.store(group="hydra/sweeper", name="walk", node=SweeperConfig)
    store.store(group="hydra/sweeper/part", name="first", node=PartConfig)
    store.store(group="hydra/sweeper/part", name="second", node=PartConfig(seed=2))
    for path, config in plugin_config.stored_configs.__wrapped__().items():
        if path not in known:
            monkeypatch.setitem(known, path, config)
    yield Lab(tmp_path)
    store.repo = repo


def read(lab: Lab, *words: str) -> Sweep[TrainConfig]:
    return read_sweep("train", TrainConfig, lab.only("name=s", *words), multirun=True)


def sweep(lab: Lab, monkeypatch: pytest.MonkeyPatch, main: Trained, *words: str) -> int:
    monkeypatch.setattr(plugins, "train", main)
    return run_sweep(read(lab, *words), main)


def runs(main: Trained) -> list[str]:
    return sorted(locate_run(config).name for config in main.called)


def test_a_launcher_runs_the_runs_of_our_own(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same directories, once; what is done is not trained again, by any launcher."""
    mine, again = Trained(), Trained()
    assert sweep(lab, monkeypatch, mine, LR, DROPOUT, "hydra/launcher=pairs", "hydra.launcher.at_once=3") == 0
    assert len(runs(mine)) == 4 and all(Path(lab.study("s") / name).is_dir() for name in runs(mine))
    assert sweep(lab, monkeypatch, again, LR, DROPOUT) == 0 and again.called == []
    assert sweep(lab, monkeypatch, again, LR, "model.dropout=0,0.2", "hydra/launcher=pairs") == 0
    assert [config.model.dropout for config in again.called] == [0.2, 0.2]
    assert not list(lab.study("s").rglob(".hydra"))


def test_codes_of_points_on_a_launcher(lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    main = Trained(lambda config: Diverged("loss is nan") if config.optimizer.lr == 1e-2 else None)
    assert sweep(lab, monkeypatch, main, LR, "hydra/launcher=pairs") == Diverged.exit_code
    assert len(main.called) == 2 and "diverged: loss is nan" in capsys.readouterr().out
    again = Trained()
    assert sweep(lab, monkeypatch, again, LR, "hydra/launcher=pairs") == Diverged.exit_code and again.called == []
    assert sweep(lab, monkeypatch, again, LR, "hydra/launcher=pairs", "sweep.retry=failed") == 0
    monkeypatch.setattr(Trained, "__call__", lambda *_: STOPPED)
    assert sweep(lab, monkeypatch, again, "optimizer.lr=1e-4", "hydra/launcher=pairs") == STOPPED


def test_a_launcher_that_fails_is_one_line(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PluginLauncher, "launch", lambda *_, **__: 1 / 0)
    with pytest.raises(Exception, match="hydra/launcher=pairs: ZeroDivisionError: division by zero"):
        sweep(lab, monkeypatch, Trained(), LR, "hydra/launcher=pairs")


@pytest.mark.parametrize("launcher", ["basic", "pairs"])
def test_a_sweeper_gets_our_points(lab: Lab, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    """Hydra's own grid sweeper chooses the points of our grid; group choices and fixed keys with them."""
    mine, theirs = Trained(), Trained()
    words = [LR, "model=tiny,baby", "training.steps=9", f"hydra/launcher={launcher}"]
    assert sweep(lab, monkeypatch, theirs, *words, "hydra/sweeper=walk", "hydra.sweeper.max_batch_size=3") == 0
    assert sweep(lab, monkeypatch, mine, *words, "name=t") == 0
    assert [one.model_copy(update={"name": "", "runs_dir": ""}) for one in theirs.called] == [
        one.model_copy(update={"name": "", "runs_dir": ""}) for one in mine.called
    ]
    assert runs(theirs) == runs(mine)
    again = Trained()
    assert sweep(lab, monkeypatch, again, *words, "hydra/sweeper=walk") == 0 and again.called == []


def test_a_sweepers_own_keys_and_parts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that its settings sweep, seeds that each trial has, a part by its name with a key set."""
    main = Trained()
    words = ["hydra/sweeper=walk", "hydra.sweeper.params={optimizer.weight_decay: '0.2,0.3'}", "training.seed=1,2"]
    assert sweep(lab, monkeypatch, main, *words, "hydra/sweeper/part=second", "optimizer.lr=1e-3") == 0
    assert sorted((one.optimizer.weight_decay, one.training.seed) for one in main.called) == [
        (0.2, 1), (0.2, 2), (0.3, 1), (0.3, 2),
    ]  # fmt: skip
    assert PluginSweeper.parts[-1] == 2
    sweep(lab, monkeypatch, main, *words, "hydra.sweeper.part.seed=7")
    assert PluginSweeper.parts[-1] == 7


@pytest.mark.slow
def test_a_trial_that_fails_ends_a_sweeper_that_minds(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    main = Trained(lambda config: Diverged("loss is nan") if config.optimizer.lr == 1e-2 else None)
    with pytest.raises(Diverged, match=r"trial 2 diverged: optimizer.lr=0.01: loss is nan"):
        sweep(lab, monkeypatch, main, LR, "hydra/sweeper=walk")
    with pytest.raises(BadInput, match=r"trial 1 invalid: .*optimizer.lrr: no such key"):
        sweep(lab, monkeypatch, main, "hydra/sweeper=walk", "hydra.sweeper.params={optimizer.lrr: '1,2'}", "name=t")
    with pytest.raises(BadInput, match=r"trial 1 invalid: .*hydra.launcher.at_once=1: is the same for all points"):
        sweep(lab, monkeypatch, main, "hydra/sweeper=walk", "hydra.sweeper.params={hydra.launcher.at_once: '1,2'}")


def test_a_users_file_sets_keys_of_a_plugin(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    own = lab.folder / "conf" / "hydra" / "launcher" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("defaults: [pairs, _self_]\nat_once: 5\nplaces: {here: [1, 2]}\n")
    with search_in(split_search_path(["--config-dir", str(lab.folder / "conf")])[0]):
        launcher = read(lab, LR, "hydra/launcher=mine").launcher
        assert isinstance(launcher, plugin_config.PluginLauncher)
        assert launcher.config == {"_target_": LauncherConfig._target_, "at_once": 5, "places": {"here": [1, 2]}}
        for text, why in evil():
            own.write_text(text)
            with pytest.raises(BadInput, match=why):
                read(lab, LR, "hydra/launcher=mine")


def evil() -> Iterator[tuple[str, str]]:
    """Yield files that name a class or a value of this machine, each with the refusal."""
    yield "_target_: os.system\n", "its file must begin with defaults"
    yield "defaults: [pairs, _self_]\n_target_: os.system\n", "_target_: no class can be named here"
    yield "defaults: [pairs, _self_]\nplaces: {x: [{_target_: os.system}]}\n", "_target_: no class can be named"
    yield "defaults: [pairs, _self_]\nplaces: {x: '\\${oc.env:HOME}'}\n", "no interpolation"
    yield "defaults: [pairs, _self_]\nplaces: {x: '${oc.decode:1}'}\n", "resolver 'oc.decode' is not allowed"
    yield "plugin: os.system\n", "no such plugin"
    yield "defaults: [pairs, _self_]\nat_onc: 5\n", "Key 'at_onc' not in 'LauncherConfig'; did you mean 'at_once'"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hydra/launcher=joblib2"], "no such choice; allowed: one of basic, "),
        (["hydra/launcher=rq"], "hydra/launcher=rq: this plugin is not installed: pip install hydra-rq-launcher"),
        (["hydra/sweeper=nevergrad"], "this plugin is not installed: pip install hydra-nevergrad-sweeper"),
        (["hydra/launcher=pair"], "did you mean 'pairs'?"),
        (["hydra/launcher=pairs", "hydra.launcher.at_onc=3"], "did you mean 'hydra.launcher.at_once'?"),
        (["hydra/launcher=pairs", "hydra.launcher.at_once=x"], "could not be converted to Integer"),
        (["hydra.launcher.at_once=3"], "hydra.launcher.at_once: choose hydra/launcher=pairs"),
        (["hydra.sweeper.params=3"], "hydra.sweeper.params: choose hydra/sweeper="),
        (["hydra/launcher=pairs", "hydra.launcher._target_=os.system"], "hydra.launcher._target_: no such key"),
        (["hydra/launcher=pairs", "hydra.launcher.places._target_=os.system"], "no class can be named here"),
        (["hydra/launcher=pairs", "hydra.launcher.places={_target_: os.system}"], "no class can be named here"),
        (["hydra/sweeper=walk", "hydra.sweeper.custom_search_space=os.system"], "no such key"),
        (["hydra/sweeper=walk", "hydra.sweeper.part={_target_: os.system}"], "no class can be named here"),
        (["hydra/sweeper=walk", "hydra/sweeper/part=third"], "no such choice; allowed: one of first, second"),
        (["hydra/sweeper=walk", "sweep.zip=[lr,dropout]"], "hydra/sweeper=walk chooses each key independently"),
        (["hydra/launcher=pairs,basic"], "can't be swept"),
    ],
)
def test_bad_plugins(lab: Lab, words: list[str], expected: str) -> None:
    with pytest.raises(BadInput) as refused:
        read(lab, LR, DROPOUT, *words)
    assert expected in str(refused.value) and str(refused.value).isprintable()


def test_secrets_do_not_reach_a_plugin(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    with pytest.raises(BadInput, match=r"places.x: holds the value of the environment variable WANDB_API_KEY"):
        read(lab, LR, "hydra/launcher=pairs", "hydra.launcher.places={x: '0123456789abcdef0123456789abcdef01234567'}")


def test_texts_reach_a_job_unchanged(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that look like interpolations."""
    seen: list[str] = []
    sweep_of = read(lab, LR, "hydra/launcher=pairs", "name=s")
    assert isinstance(sweep_of.launcher, plugin_config.PluginLauncher)
    text = json.dumps({"x": "${oc.env:HOME} $ ??? 'é' \\"})
    plugins.launch_jobs(sweep_of.launcher, lab.folder / "x", [("a=b", text)], seen.append)
    assert json.loads(seen[0]) == json.loads(text)


@pytest.mark.slow
def test_joblib(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real plugin, in further processes: the runs are those that this process would train."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["training.steps=3", "training.seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert run_sweep(read(lab, *words), plugins.train) == 0
    assert len(list(lab.study("s").glob("*/status.json"))) == 2
    states = [RunDirectory(path.parent).read_status()["state"] for path in lab.study("s").glob("*/status.json")]
    assert states == ["finished", "finished"]
