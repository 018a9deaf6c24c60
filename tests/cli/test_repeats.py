"""A key that is given more than once, and `glob()`: both mean what they mean to Hydra."""

import fnmatch

import pytest
from hydra import compose, initialize_config_dir

from cli import config_files
from cli.compose import register_schemas
from cli.config_files import choices
from cli.entry import dispatch
from cli.sweep_request import read_configs, read_sweep
from nanogpt.config import SampleConfig, TrainConfig
from tests.cli_helpers import error_message
from tests.conftest import Run


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer.lr=1e-3", "optimizer.lr=2e-3"],
        ["optimizer.lr=2e-3", "model=baby", "optimizer.lr=1e-3", "model=tiny"],
        ["name=a", "name=b", "name=a"],
        ["optimizer.lr=abc", "optimizer.lr=3e-3"],
    ],
)
def test_the_last_value_counts_as_in_hydra(words: list[str]) -> None:
    (mine,) = read_configs("train", TrainConfig, words)
    register_schemas("train", TrainConfig)
    with initialize_config_dir(str(config_files.CONFIG_DIR), version_base="1.3"):
        theirs = compose("train", words)
    assert (mine.optimizer.lr, mine.model.name, mine.name) == (
        theirs.optimizer.lr,
        theirs.model.name,
        theirs.name,
    )


def test_the_last_of_two_sweeps_counts() -> None:
    sweep = read_sweep("train", TrainConfig, ["optimizer.lr=1e-3,2e-3", "optimizer.lr=3e-3"], multirun=True)
    assert [point.config.optimizer.lr for point in sweep.points] == [3e-3]
    sweep = read_sweep("train", TrainConfig, ["optimizer.lr=3e-3", "optimizer.lr=1e-3,2e-3"], multirun=True)
    assert [point.config.optimizer.lr for point in sweep.points] == [1e-3, 2e-3]
    sweep = read_sweep(
        "train", TrainConfig, ["sweep.zip=[a]", "hydra/sweeper=halving", "hydra/sweeper=basic", "sweep.zip=[]"]
    )
    assert sweep.sweeper.method == "all"


def test_the_last_prompt_counts_quoted_or_not() -> None:
    assert read_configs("sample", SampleConfig, ["prompt=one", "prompt='two'"])[0].prompt == "two"
    assert read_configs("sample", SampleConfig, ["prompt='one'", "prompt=two"])[0].prompt == "two"


def test_a_note_names_the_values(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optimizer.lr=1e-3", "model=tiny", "optimizer.lr=2e-3", "model=tiny"]
    assert dispatch("train", TrainConfig, lambda _: 0, words) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "note: optimizer.lr=1e-3 optimizer.lr=2e-3: optimizer.lr is given 2 times; the last one counts\n"


@pytest.mark.parametrize("words", [["model=tiny", "+model=baby"], ["optimizer.lr=1", "~optimizer.lr"]])
def test_a_repeat_does_not_hide_what_is_refused(words: list[str]) -> None:
    assert "can't be" in error_message("train", words)


def test_a_process_notes_it_once(run: Run) -> None:
    done = run("train.py", "optimizer.lr=1", "optimizer.lr=2", "--cfg", "job")
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "  lr: 2.0\n" in done.stdout


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("model=glob(gpt2*)", [name for name in choices("model") if fnmatch.fnmatch(name, "gpt2*")]),
        (
            "model=glob([tiny*,baby*],exclude=*modern)",
            ["baby", "tiny"],
        ),
        ("hardware=glob(*,exclude=[*x*])", [name for name in choices("hardware") if "x" not in name]),
    ],
)
def test_glob_chooses_files_of_a_group(word: str, expected: list[str]) -> None:
    group = word.partition("=")[0]
    sweep = read_sweep("train", TrainConfig, [word], multirun=True)
    assert [point.changes[group] for point in sweep.points] == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("modle=glob(*)", "modle: no such key or group; did you mean 'model'?"),
        ("model=glob(gtp*)", "model=glob(gtp*): matches none of baby, "),
        ("optimizer.lr=glob(*)", "for other keys list values with commas"),
        ("hydra/launcher=glob(*)", "can't be swept"),
        ("model=glob(", "check the quotes and brackets"),
    ],
)
def test_other_globs_are_refused(word: str, expected: str) -> None:
    assert expected in error_message("train", ["-m", word])
