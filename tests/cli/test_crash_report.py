"""Errors at the entry point: what the machine causes is one line, what the code causes has its traceback and a file."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli import crash_report
from cli.crash_report import describe_code
from cli.entry import exit_on_error
from nanogpt.provenance import GIT_STATE
from tests.conftest import ROOT

SECRET = "hunter2-in-the-environment"


def broken() -> int:
    raise KeyError(f"what\nis this {SECRET}")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("MY_PASSWORD", SECRET)
    monkeypatch.setattr("sys.argv", ["train.py", f"name={SECRET}"])
    monkeypatch.setattr(crash_report, "git_state", lambda _: {"changed": []})  # type: ignore[reportUnknownLambdaType]
    return tmp_path / "nanogpt-lab"


def test_an_internal_error_shows_its_traceback_and_keeps_it(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        exit_on_error("train", broken)
    said = capsys.readouterr()
    (file,) = state.iterdir()
    *shown, line = said.err.splitlines()
    assert ended.value.code == 1 and said.out == ""
    assert line.startswith("error: internal error: KeyError: ") and f"traceback above and in {file}" in line
    assert "not yours; please report it" in line
    assert shown[0].startswith("Traceback") and any("in broken" in one for one in shown)
    text = file.read_text()
    assert "Traceback" in text and "in broken" in text and "torch 2" in text
    assert SECRET not in text + said.err and file.stat().st_mode & 0o777 == 0o600


def test_failures_of_one_second_have_a_file_each(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "now")  # type: ignore[reportUnknownLambdaType]
    for _ in range(3):
        with pytest.raises(SystemExit):
            exit_on_error("train", broken)
    assert len(list(state.iterdir())) == 3


def test_edited_code_is_named(state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    here = Path(__file__).relative_to(ROOT)
    changed = [" M nanogpt/model/gpt.py", "?? conf/model/mine.yaml", f"?? {here}"]
    monkeypatch.setattr(crash_report, "git_state", lambda _: {"changed": changed})  # type: ignore[reportUnknownLambdaType]
    with pytest.raises(SystemExit):
        exit_on_error("train", broken)
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"edited since the last commit: nanogpt/model/gpt.py, {here}; " in line
    assert "not yours" not in line and "mine.yaml" not in line


def test_edited_code_is_named_in_a_copy_for_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The copy has no git, but a file with the state of the checkout beside its packages."""
    (tmp_path / "cli").mkdir()
    (tmp_path / GIT_STATE).write_text(json.dumps({"commit": "a", "changed": [" M nanogpt/optim/muon.py"], "diff": ""}))
    monkeypatch.setattr("cli.crash_report.__file__", str(tmp_path / "cli" / "crash_report.py"))
    assert "edited since the last commit: nanogpt/optim/muon.py" in describe_code("a traceback")


def test_where_no_file_can_be_written_the_traceback_is_shown(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state.write_text("a file, not a folder")
    with pytest.raises(SystemExit):
        exit_on_error("train", broken)
    said = capsys.readouterr().err
    assert "in broken" in said and "traceback above; " in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (MemoryError(), 5, "out of memory: "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 5, "out of memory: "),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 5, "runs/x: Permission denied"),
        (PermissionError(errno.EACCES, "Permission denied", b"runs/\xff"), 5, "runs/\\udcff: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "train, in what it writes or prints: No space left"),
        (OSError(errno.EMFILE, "Too many open files", "x"), 5, "x: Too many open files; raise the limit with ulimit"),
        (OSError(errno.EROFS, "Read-only file system", "x"), 5, "x: Read-only file system; choose another place"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 3, "not valid utf-8 at byte 0"),
        (UnicodeEncodeError("utf-8", "a\udc80", 1, 2, "surrogates not allowed"), 2, "can't be written as utf-8"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (OverflowError("math range error"), 2, "a number is too large or too small to compute with: math range error"),
        (
            ModuleNotFoundError("No module named 'hydra'", name="hydra"),
            5,
            "has no 'hydra'; pip installs it with nanogpt-lab",
        ),
        (ImportError("cannot import name 'x' from 'torch'", name="torch._C"), 5, "can't import from (cannot import"),
    ],
)
def test_what_comes_from_outside_is_one_line(
    state: Path, capsys: pytest.CaptureFixture[str], error: Exception, code: int, expected: str
) -> None:
    def fails() -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        exit_on_error("train", fails)
    said = capsys.readouterr().err
    assert ended.value.code == code and said.startswith("error: ") and said.count("\n") == 1 and expected in said
    assert not state.exists()


@pytest.mark.parametrize("error", [ModuleNotFoundError("no", name="nanogpt.x"), ImportError("no"), ValueError("no")])
def test_our_own_mistakes_are_internal_errors(
    state: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fails() -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        exit_on_error("train", fails)
    assert ended.value.code == 1 and "error: internal error: " in capsys.readouterr().err


def start(words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell, with this Python as $PYTHON, in a folder."""
    there = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": f"{sys.executable} -B", "LAB": str(ROOT)} | environment
    return subprocess.run(["bash", "-c", words], cwd=folder, env=there, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ("$PYTHON $LAB/train.py --cfg job >&-", 0, ""),
        ("$PYTHON $LAB/train.py --cfg job >&- 2>&- <&-", 0, ""),
        ("$PYTHON $LAB/train.py model.n_head=5 2>&-", 2, ""),
        ("$PYTHON $LAB/train.py --cfg job >/dev/full", 5, "No space left on device"),
        ("set -o pipefail; $PYTHON $LAB/train.py --help all | head -1 >&2", 0, "name"),
        ("mkdir gone; cd gone; rmdir ../gone; $PYTHON $LAB/train.py dry_run=true", 5, "the current folder was deleted"),
    ],
)
def test_streams_and_folders_that_are_not_there(tmp_path: Path, words: str, code: int, expected: str) -> None:
    done = start(words, tmp_path)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert expected in done.stderr and done.stderr.count("\n") == bool(expected), done.stderr
    assert not list(tmp_path.iterdir())
