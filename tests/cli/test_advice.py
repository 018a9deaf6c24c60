"""What an error advises to type works when it is typed."""

import re
import shlex
from pathlib import Path

import pytest

from cli.entry import dispatch
from cli.sweep_request import read_configs
from nanogpt.config import SampleConfig, TrainConfig
from nanogpt.schema import iter_values
from tests.cli_helpers import error_message
from tests.conftest import Run

WRONG = [  # what was typed, after the shell, and the value that the advice gives
    (["data=text", "data.source=a&b.txt"], "data.source", "a&b.txt"),
    (["data=text", "data.source=a!$b.txt"], "data.source", "a!$b.txt"),
    (["data=text", "data.source=it`s;a\\"], "data.source", "it`s;a\\"),
    (["data=text", "data.source=~/notes.txt"], "data.source", str(Path("~/notes.txt").expanduser())),
    (["runs_dir=~/runs"], "runs_dir", str(Path("~/runs").expanduser())),
    (["runs_dir='~/runs'"], "runs_dir", str(Path("~/runs").expanduser())),
    (["runs_dir=b#c"], "runs_dir", "b#c"),
    (["name=123e456"], "name", "123e456"),
    (["name=1_000"], "name", "1_000"),
    (["name=12"], "name", "12"),
    (["name=true"], "name", "true"),
    (["name=\u201cx\u201d"], "name", "x"),
    (["optimizer.lr=1e\u20133"], "optimizer.lr", 1e-3),
    (["optimizer.lr:1e-3"], "optimizer.lr", 1e-3),
    (["training.steps=1e3"], "training.steps", 1000),
    (["model.n_layer=6.0"], "model.n_layer", 6),
    (["--optimizer.lr=3e-3"], "optimizer.lr", 3e-3),
]


@pytest.mark.parametrize(("words", "key", "value"), WRONG, ids=[words[-1] for words, _, _ in WRONG])
def test_the_advice_composes(words: list[str], key: str, value: object) -> None:
    *others, _ = words
    message = error_message("train", words).partition("; allowed")[0]
    advice = re.split(r": |; write |; quote it: |without dashes: ", message)[-1].removeprefix("write ")
    (word,) = shlex.split(advice if "=" in advice else f"{key}={advice}")
    (config,) = read_configs("train", TrainConfig, [*others, word])
    assert dict(iter_values(config))[key] == value


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "name=\u00fcn\u00ef",
            "the character '\u00fc' needs quotes, and is not allowed in them either; allowed: letters",
        ),
        ("optimizer.lr=1e-3;", "the character ';' can't be in it; allowed: number in (0, 10]"),
        ("model.n_layer=\uff12", "the character '\uff12' can't be in it; allowed: integer in [1, 1000]"),
        ("optimizer.lr=1e-3,", "ends with a comma; leave it out, or give one more value"),
        ("n\u00e4me=x", "no key has the character '\u00e4'"),
        ("optimizer,lr=3", "no key has the character ','"),
        ("optimizer.lr =1e-3", "write key=value without blanks before '='"),
        ("name='x", "check the quotes and brackets"),
        ("\u2014help", "options begin with '-' or '--', and this with '\u2014'"),
        ("data.source=~surely-nobody/x", "there is no such user"),
        ("runs_dir='~surely-nobody/x'", "there is no such user"),
        ("optimizer.weight_decay=1e-400", "optimizer.weight_decay=1e-400: too small for a number; allowed: number in"),
        ("training.seed=1e400", "training.seed=1e400: too large for a number; allowed: integer in"),
        ("hardware.device=CPU", "did you mean 'cpu'?"),
        ("hardware.device=gpu", "did you mean 'cuda'?"),
        ("model=conf/model/tiny.yaml", "did you mean 'tiny'?"),
        ("runs_dir=''", "runs_dir=: text is needed, not nothing"),
        (
            "--config-path=x",
            "--config-path=x: no such option here; files of your own: --config-dir FOLDER",
        ),
        ("--config-name=x", "write FOLDER/experiment/NAME.yaml: --config-dir FOLDER experiment=NAME"),
        ("--multirun=3", "--multirun takes no value"),
        ("--cfg=foo", "--cfg foo: allowed: one of job"),
    ],
)
def test_messages(words: str, expected: str) -> None:
    assert expected in error_message("train", [words])


def test_no_number_is_read_as_another_unsaid() -> None:
    assert "temperature=1e-400: too small" in error_message("sample", ["temperature=1e-400"])
    assert read_configs("sample", SampleConfig, ["temperature=0.0"])[0].temperature == 0


@pytest.mark.parametrize("words", [["--cfg", "job"], ["--cfg=job"], ["-c", "job", "--resolve"]])
def test_cfg_shows_all(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch("train", TrainConfig, lambda _: 1, words) == 0
    assert "\nmodel:\n  name: tiny\n" in capsys.readouterr().out


def test_package_shows_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch("train", TrainConfig, lambda _: 1, ["--cfg", "job", "--package", "model", "model=baby"]) == 0
    assert capsys.readouterr().out.startswith("# @package model\nname: baby\nn_layer: ")
    assert "did you mean 'model'?" in error_message("train", ["--cfg", "job", "-p", "modle"])
    assert "needs --cfg job" in error_message("train", ["--package", "model"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--info", "model=baby"], "model/baby"),
        (["-i", "defaults", "model=baby"], "model/baby"),
        (["--info=plugins", "model=baby"], "BasicLauncher"),
        (["--cfg", "all", "--resolve", "model=baby"], "name: baby"),
        (["--cfg", "hydra", "--package", "hydra.launcher"], "executor: none"),
        (["--hydra-help", "model=baby"], "== Flags =="),
    ],
)
def test_hydra_answers(words: list[str], expected: str, run: Run) -> None:
    done = run("train.py", *words)
    assert (done.returncode, done.stderr) == (0, "") and expected in done.stdout


def test_help_has_a_hint() -> None:
    assert "see --help all; did you mean 'model'?" in error_message("train", ["--help", "modle"])


BAD_FILES = {
    "digits": (b"training:\n  steps: " + b"9" * 5000 + b"\n", "can't be read as YAML: Exceeds the limit"),
    "utf16": ("name: x\n".encode("utf-16"), "YAML"),
    "latin": ("# \u00e9\nname: x\n".encode("latin-1"), "YAML"),
    "nul": (b"name: a\0b\n", "YAML"),
    "list": (b"- 1\n- 2\n", "ConfigTypeError raised while composing config: "),
    "tab": (b"name:\n\t- x\n", "YAML"),
    "run": (b"hydra:\n  run:\n    dir: /tmp/elsewhere\n", "hydra.run.dir: Hydra's own settings can't be changed here"),
    "env": (b"hydra:\n  job:\n    env_set:\n      A: b\n", "hydra.job.env_set.A: Hydra's own settings"),
    "path": (b"hydra:\n  searchpath: [file:///tmp]\n", "hydra.searchpath: Hydra's own settings"),
    "log": (b"defaults:\n  - override /hydra/job_logging: none\n", "hydra/job_logging: Hydra's own"),
    "new": (b"hydra:\n  mine: 1\n", "Key 'mine' not in 'HydraConf' full_key: hydra.mine"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_used(name: str, experiment: Path) -> None:
    content, expected = BAD_FILES[name]
    experiment.write_bytes((b"" if name == "utf16" else b"# @package _global_\n") + content)
    message = error_message("train", ["experiment=mine"])
    assert expected in message and "mine" in message and message.isprintable()


def test_a_file_may_choose_launcher_and_sweeper(experiment: Path) -> None:
    experiment.write_text(
        "# @package _global_\ndefaults:\n  - override /hydra/launcher: submitit_local\n"
        "hydra:\n  launcher:\n    timeout_min: 7\n"
    )
    assert read_configs("train", TrainConfig, ["experiment=mine", "optimizer.lr=1e-3,2e-3"], multirun=True)
