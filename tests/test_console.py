"""What is printed: by a command all that the loggers report, by a program that imports the library nothing."""

import logging
import subprocess
import sys
from collections.abc import Callable, Generator

import pytest

from nanogpt import console
from nanogpt.config import TrainConfig
from nanogpt.training.run import train

Build = Callable[..., TrainConfig]


@pytest.fixture
def embedded() -> Generator[None, None, None]:
    """The loggers as a program finds them that imports the library."""
    for name in console.PACKAGES:
        logging.getLogger(name).removeHandler(console.HANDLER)
        logging.getLogger(name).setLevel(logging.NOTSET)
        logging.getLogger(name).propagate = True
    yield
    console.show_logs()


def test_a_program_that_trains_in_process_prints_nothing(
    config: Build, embedded: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(config(**{"model.vocab_size": 1000})) == 0
    assert capfd.readouterr() == ("", "")


def test_a_program_that_configures_logging_gets_levels_and_modules(
    config: Build, embedded: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "nanogpt"):
        assert train(config(**{"model.vocab_size": 1000})) == 0
    heard = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert any(name == "nanogpt.training.summary" and text.startswith("run     ") for name, _, text in heard)
    warnings = [text for _, level, text in heard if level == "WARNING"]
    assert len(warnings) == 1 and warnings[0].startswith("model.vocab_size=1000, but the data has only ")


def test_a_command_prints_what_is_logged(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config(**{"model.vocab_size": 1000})) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert not err
    assert sum(line.startswith("warning: model.vocab_size=1000, but the data has only ") for line in lines) == 1
    beginnings = ("run     ", "data    ", "model   ", "step 4/")
    assert [begin for line in lines for begin in beginnings if line.startswith(begin)] == [*beginnings]
    assert any(line.strip() == "result" for line in lines)


def test_other_ranks_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    console.mute(True)
    try:
        logging.getLogger("nanogpt.training.run").warning("a notice")
        console.print_text("a result")
        assert not console.is_visible()
    finally:
        console.mute(False)
    assert capsys.readouterr().out == "" and console.is_visible()


def test_a_warning_without_any_configuration_is_not_printed() -> None:
    program = "import logging, nanogpt; logging.getLogger('nanogpt.training.run').warning('a notice')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_percent_signs_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("nanogpt.x").info("90 % of %s")
    assert capsys.readouterr().out == "90 % of %s\n"
