"""A place where results can't go is refused before the work."""

import os
import pty
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.entry import dispatch
from experiments import compare, coordinates, report
from experiments.scaling.command import run_scaling
from nanogpt.benchmark import report as bench
from nanogpt.errors import BadEnvironment, BadInput, LabError
from nanogpt.generation.command import sample
from nanogpt.output_paths import check_output_file, check_output_folder
from tests.cli_helpers import CONFIGS

FILES: dict[str, tuple[str, Callable[..., int], list[str]]] = {
    "sample": ("out", sample, []),
    "bench": ("bench.out", bench.bench, ["hardware=cpu"]),
    "coordinates": ("coordinates.out", coordinates.check_coordinates, ["hardware=cpu"]),
}
FOLDERS: dict[str, tuple[str, Callable[..., int], list[str]]] = {
    "report": ("out", report.report, []),
    "compare": ("out", compare.compare, []),
    "scaling": ("out", run_scaling, ["runs=x*"]),
    "bench": ("bench.trace", bench.bench, ["hardware=cpu", "profile=true"]),
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file, a folder, a pipe, links; the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dead").symlink_to("nowhere/x")
    (tmp_path / "circle").symlink_to("circle")
    return tmp_path


@pytest.mark.parametrize("given", ["folder", ".", "", "new/", "file/x", "pipe", "circle", "x" * 300, "a\0b"])
def test_no_file_can_be_there(places: Path, given: str) -> None:
    with pytest.raises(BadInput, match=r"^out="):
        check_output_file("out", given)


@pytest.mark.parametrize("given", ["file", "folder/new", "a/b/c", "link", "dead", "/dev/null", None])
def test_a_file_can_be_there(places: Path, given: str | None) -> None:
    check_output_file("out", given)
    assert not (places / "a").exists() and not (places / "nowhere").exists()


def test_a_link_is_refused_where_it_is_not_followed(places: Path) -> None:
    with pytest.raises(BadInput, match="not a regular file"):
        check_output_file("out", "link", links=False)


def test_a_terminal_takes_results(places: Path) -> None:
    ours, theirs = pty.openpty()
    check_output_file("out", os.ttyname(theirs))
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("given", ["file", "file/x", "pipe", "circle", "", "a\0b"])
def test_no_folder_can_be_there(places: Path, given: str) -> None:
    with pytest.raises(BadInput, match=r"^out="):
        check_output_folder("out", given)


def test_what_may_not_be_written(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user who isn't root finds it; root may write everywhere."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # type: ignore[reportUnknownLambdaType]
    for check in (
        lambda: check_output_file("out", "file"),
        lambda: check_output_file("out", "folder/new"),
        lambda: check_output_folder("out", "new/er"),
    ):
        with pytest.raises(BadEnvironment, match=r"^out=.*permission denied"):
            check()


@pytest.mark.parametrize("command", FILES)
def test_commands_check_their_file_first(command: str, places: Path) -> None:
    key, main, words = FILES[command]
    for place in ("folder", "file/x"):
        with pytest.raises(BadInput, match=f"^{key}={place}: "):
            dispatch(command, CONFIGS[command], main, [*words, f"{key}={place}"])


@pytest.mark.parametrize("command", FOLDERS)
def test_commands_check_their_folder_first(command: str, places: Path) -> None:
    key, main, words = FOLDERS[command]
    with pytest.raises(LabError, match=f"^{key}=file: not a folder"):
        dispatch(command, CONFIGS[command], main, [*words, f"{key}=file"])
