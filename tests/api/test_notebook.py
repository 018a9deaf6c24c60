"""docs/python.ipynb runs from its first cell to its last, and docs/python.md names what exists."""

import os
import re
from pathlib import Path

import pytest

import nanogpt

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "docs" / "python.ipynb", 4)
    client.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("optimizer.lrr: no such key" in output.get("text", "") for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    if target := os.environ.get("WRITE_NOTEBOOK"):
        nbformat.write(notebook, target)


def test_the_page_names_what_exists() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    names = set(re.findall(r"nanogpt\.(\w+)\(", page)) - {"config"}
    assert names <= set(nanogpt.__all__) and {"compose", "train", "load", "study", "GPT"} <= names
    for name in re.findall(r"`run\.(\w+)", page):
        assert hasattr(nanogpt.Run, name) or name in nanogpt.Run.__dataclass_fields__, name
    for name in re.findall(r"study\.(\w+)", page):
        assert hasattr(nanogpt.StudyResults, name) or name == "py", name
    for name in re.findall(r"model\.(\w+)\(", page):
        assert hasattr(nanogpt.GPT, name), name
    assert all(hasattr(nanogpt, name) for name in dir(nanogpt))
