"""A user's own folder of YAML files: found, listed, checked, and no part of a run's identity."""

import os
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import nanogpt
from cli import config_files, sweep_request
from cli.argv import split_search_path
from cli.compose import Composer, register_schemas
from cli.config_files import search_in
from cli.entry import help_page
from cli.sweep_request import read_sweep
from experiments.reproduce import reproduce_command
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput
from tests.cli_helpers import error_message
from tests.conftest import Run

FILES = {
    "model/mini.yaml": "# @package _global_\ndefaults: [tiny, _self_]\nmodel: {name: mini, n_layer: 2}\n",
    "data/notes.yaml": "name: notes\ncorpus: text\ntokenizer: char\nsource: notes.txt\n",
    "hardware/laptop.yaml": "device: cpu\nmicro_batch_size: 4\n",
    "hydra/launcher/two.yaml": "defaults: [submitit_local, _self_]\narray_parallelism: 2\n",
    "experiment/mine.yaml": (
        "# @package _global_\n"
        "defaults: [override /model: mini, override /data: notes, override /hydra/launcher: two]\n"
        "name: mine\nsweep:\n  grid: {optimizer.lr: [1e-3, 3e-3]}\n"
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Own files in a folder with a blank in its name; the working directory has the text that they name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_request, "Composer", Composer)  # which reads the files anew
    tmp_path.joinpath("notes.txt").write_text("a line of notes\n" * 400)
    for name, content in FILES.items():
        path = tmp_path / "my conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "my conf"


def test_files_of_every_kind_are_found_as_hydra_finds_them(folder: Path) -> None:
    with search_in([str(folder)]):
        sweep = read_sweep("train", TrainConfig, ["experiment=mine", "hardware=laptop"], multirun=True)
        register_schemas("train", TrainConfig)
        with initialize_config_dir(str(config_files.CONFIG_DIR), version_base="1.3"):
            theirs = compose("train", ["experiment=mine", "hardware=laptop", f"hydra.searchpath=['file://{folder}']"])
    config = sweep.points[0].config
    assert [point.changes for point in sweep.points] == [{"optimizer.lr": "0.001"}, {"optimizer.lr": "0.003"}]
    assert (config.model.name, config.model.n_layer, config.model.n_embd) == ("mini", 2, theirs.model.n_embd)
    assert (config.data.name, config.data.source, config.hardware.micro_batch_size) == ("notes", "notes.txt", 4)
    assert sweep.launcher.model_dump()["array_parallelism"] == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--config-dir", "my conf"],
        ["--config-dir=my conf"],
        ["-cd", "my conf"],
        ["hydra.searchpath=['my conf']"],
        ["hydra.searchpath=['file://{folder}']"],
        ["hydra.searchpath=[gone]", "hydra.searchpath=['file://{folder}']"],
        ["--config-dir", "gone", "-cd", "my conf"],
    ],
)
def test_ways_to_name_it(words: list[str], folder: Path) -> None:
    folders, rest = split_search_path(["model=mini", *(word.format(folder=folder) for word in words), "name=x"])
    assert rest == ["model=mini", "name=x"]
    with search_in(folders):
        assert config_files.USER_FOLDERS.get() == (folder,)
    assert config_files.USER_FOLDERS.get() == ()


@pytest.mark.slow
def test_commands_take_it(folder: Path, run: Run) -> None:
    """Training, --cfg, --help, --info, and a wrong name, whose nearest is the user's."""
    words = ["--config-dir", str(folder)]
    os.chdir("/")
    done = run("train.py", *words, "model=mini", "--cfg", "job", "--package", "model")
    assert (done.returncode, done.stdout.splitlines()[:2]) == (0, ["# @package model", "name: mini"])
    assert str(folder) in run("train.py", *words, "--info", "searchpath").stdout
    assert "model/mini " in run("train.py", *words, "--info", "defaults", "model=mini").stdout
    assert " mini " in run("train.py", "--help", *words).stdout
    wrong = run("train.py", *words, "model=minii")
    assert wrong.returncode == 2 and "did you mean 'mini'?" in wrong.stderr
    assert run("train.py", "model=mini").returncode == 2
    data = run("prepare.py", *words, "data=notes")
    assert data.returncode == 3 and "notes.txt" in data.stderr
    assert run("-m", "launch", "submit", *words, "model=mini", "hydra/launcher=two", "dry_run=true").returncode == 0


def test_identity_does_not_depend_on_where_it_is(folder: Path) -> None:
    elsewhere = folder.parent / "deep" / "other"
    shutil.copytree(folder, elsewhere)
    before = nanogpt.compose("train", ["model=mini", f"hydra.searchpath=['{folder}']"])
    after = nanogpt.compose("train", ["model=mini", f"hydra.searchpath=['{elsewhere}']"])
    assert before == after


def test_a_report_names_it_in_the_command_that_repeats_a_run(folder: Path) -> None:
    with search_in([str(folder)]):
        (config,) = [read_sweep("train", TrainConfig, ["model=mini", "optimizer.lr=1e-3"]).points[0].config]
        command = reproduce_command(config)
    assert command and "hydra.searchpath=" in command and "model=mini" in command and str(folder) in command
    without = reproduce_command(config)
    assert without and "model.n_layer=2" in without and "searchpath" not in without


def test_help_lists_its_files(folder: Path) -> None:
    assert "mini" not in help_page("train", TrainConfig, []).split()
    with search_in([str(folder)]):
        assert "mini" in help_page("train", TrainConfig, []).split()


def test_interpolations_and_secrets_have_the_same_rules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    own = folder / "experiment" / "other.yaml"
    head = "# @package _global_\n"
    with search_in([str(folder)]):
        for line, why in (
            ("name: ${oc.env:WANDB_API_KEY}", "WANDB_API_KEY looks like a secret"),
            ("name: ${oc.decode:x}", "resolver 'oc.decode' is not allowed"),
            ("name: '0123456789abcdef0123456789abcdef01234567'", "so no secret may enter it"),
            ("hydra: {run: {dir: x}}", "hydra.run.dir: Hydra's own settings can't be changed here; runs_dir=FOLDER"),
            ("hydra: {searchpath: ['file:///etc']}", "is given on the command line, or as --config-dir"),
            ("model: {n_leyer: 2}", "did you mean 'model.n_layer'?"),
        ):
            own.write_text(f"{head}{line}\n")
            assert why in error_message("train", ["experiment=other", "dry_run=true"]), line


@pytest.mark.parametrize(
    ("name", "content", "words", "expected"),
    [
        ("", "", ["gone"], "gone: no such folder"),
        ("", "", ["my conf/model/mini.yaml"], "no such folder"),
        ("", "", ["my conf/model"], "has no YAML file in a folder of a group: data, eval, experiment,"),
        ("", "", ["pkg://os"], "pkg://os: allowed: folders, as a path or file://PATH"),
        ("model/tiny.yaml", "n_layer: 3", ["my conf"], "model/tiny.yaml: "),
        ("train.yaml", "name: x", ["my conf"], "has a file of this name; rename yours"),
        ("model/x.yaml", "a: &a [x]\nb: *a", ["my conf"], "has an alias (*name)"),
        ("model/x.yaml", "#" * 2**17, ["my conf"], "can't be read: "),
        ("", "", ["my conf", "copy"], "my conf has a file of this name"),
    ],
)
def test_bad_folders(folder: Path, name: str, content: str, words: list[str], expected: str) -> None:
    shutil.copytree(folder, "copy")
    if name:
        folder.joinpath(name).write_text(content)
    with pytest.raises(BadInput) as refused, search_in(words):
        pass
    assert expected in str(refused.value) and str(refused.value).isprintable()


@pytest.mark.parametrize("word", ["hydra.searchpath=x", "hydra.searchpath=[1]", "hydra.searchpath=[", "--config-dir="])
def test_words_that_name_no_folder(word: str) -> None:
    with pytest.raises(BadInput):
        split_search_path([word])
    with pytest.raises(BadInput):
        split_search_path(["--config-dir"])
