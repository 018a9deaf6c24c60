"""An error that nobody thought of: one line, and a file with the rest."""

from pathlib import Path

import pytest

from conf.door import guarded

SECRET = "hunter2-in-the-environment"


def broken() -> int:
    raise KeyError("what\nis this")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("MY_PASSWORD", SECRET)
    monkeypatch.setattr("sys.argv", ["train.py", f"name={SECRET}"])
    return tmp_path / "nanogpt-lab"


def test_one_line_and_the_traceback_in_a_file(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        guarded("train", broken)
    said = capsys.readouterr()
    (file,) = state.iterdir()
    assert ended.value.code == 1 and said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: KeyError: ") and str(file) in said.err and "please report it" in said.err
    text = file.read_text()
    assert "Traceback" in text and "in broken" in text and "torch 2" in text and SECRET not in text
    assert file.stat().st_mode & 0o777 == 0o600


def test_where_no_file_can_be_written_the_traceback_is_shown(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state.write_text("a file, not a folder")
    with pytest.raises(SystemExit):
        guarded("train", broken)
    said = capsys.readouterr().err
    assert "in broken" in said and "the traceback is above" in said.splitlines()[-1]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_no_memory_is_no_mistake(state: Path, capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    def starved() -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        guarded("sample", starved)
    assert ended.value.code == 5 and capsys.readouterr().err.startswith("error: out of memory: ")
    assert not state.exists()
