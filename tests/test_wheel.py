"""The wheel holds what the commands need, and they work from it in a folder that has files of the same names."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from nanogpt.provenance import git_state
from nanogpt.tracking.trackers import REQUIREMENTS
from tests.tiny_config import write_corpus

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("tests/", "docs/", "experiments/worked/", ".")


def tracked_files() -> Iterator[str]:
    """Yield the files that git tracks, or would."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("not a git checkout")
    yield from (name for name in found.stdout.splitlines() if (ROOT / name).is_file())


def packaged_files() -> set[str]:
    return {name for name in tracked_files() if "/" in name and not name.startswith(LEFT_OUT)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of this tree in which Python has left its caches."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in tracked_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for folder in [path.parent for path in tree.glob("**/*.py")]:
        (folder / "__pycache__").mkdir(exist_ok=True)
        (folder / "__pycache__" / "old.cpython-311.pyc").write_bytes(b"")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=tree, capture_output=True, check=True)
    return zipfile.ZipFile(next(out.iterdir()))


def test_the_wheel_holds_every_package_file_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = packaged_files()
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected
    kinds = {Path(name).suffix for name in expected}
    assert kinds == {".py", ".yaml", ".txt", ".html", ".css", ".js", ".json", ".md"}, (
        "see package-data in pyproject.toml"
    )


def test_supported_pythons_are_the_same_everywhere(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    about = message_from_string(wheel.read(name).decode())
    versions = re.findall(r":: (3\.\d+)", " ".join(about.get_all("Classifier", [])))
    assert versions == ["3.10", "3.11", "3.12", "3.13"] and about["Requires-Python"] == f">={versions[0]}"
    for page in ("README.md", "docs/installation.md"):
        assert f"Python {versions[0]} to {versions[-1]}" in (ROOT / page).read_text(), page


def test_messages_name_an_installation_that_works() -> None:
    """The project is on no index, so an extra is named by the requirement that it has in pyproject.toml."""
    allowed = re.findall(r'"([\w-]+[<>=][^"]*)"', (ROOT / "pyproject.toml").read_text())
    named: list[tuple[str, str]] = []
    for name in packaged_files():
        text = (ROOT / name).read_text()
        assert "nanogpt-lab[" not in text, name
        named += [(name, requirement) for requirement in re.findall(r"pip install '([^'{]+)'", text)]
    assert len(named) > 6 and [found for found in named if found[1] not in allowed] == []
    assert set(REQUIREMENTS.values()) <= set(allowed)


HOSTILE = {
    "cli.py": "raise SystemExit('the folder of the user')",
    "random.py": "raise SystemExit('the folder of the user')",
    "nanogpt/__init__.py": "raise SystemExit('the folder of the user')",
    "launch/__init__.py": "raise SystemExit('the folder of the user')",
    "conf/train.yaml": "no: such\n",
    "conf/model/tiny.yaml": "n_layer: -1\n",
}


@pytest.mark.slow
def test_two_ranks_train_from_the_wheel_beside_files_of_the_same_names(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Installed into an environment inside the repository of a user."""
    here, site, program = tmp_path / "project", tmp_path / "project" / "env" / "site", tmp_path / "bin" / "nanogpt"
    for name, text in HOSTILE.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    wheel.extractall(site)
    program.parent.mkdir()
    program.write_text("from cli.commands import main\nmain()\n")
    commit(here, *HOSTILE)
    words = "name=w hardware=cpu hardware.devices=2 hardware.threads=1 data=text data.tokenizer=byte model=tiny"
    words += " model.n_layer=1 training.steps=2 schedule.warmup_steps=1 eval.tokens=512 data.source="
    words += str(write_corpus(tmp_path / "corpus.txt"))
    done = subprocess.run(
        [sys.executable, str(program), "train", *words.split()],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (run,) = here.glob("runs/w-*")
    assert re.search(rf"nanogpt sample run={run.relative_to(here)}$", done.stdout, re.MULTILINE)
    start = json.loads((run / "provenance.json").read_text())[-1]
    assert start["git"] is None and start["command"][0] == "nanogpt train"
    assert (here / "data").is_dir()


def commit(folder: Path, *names: str) -> None:
    """Commit files of a new repository."""
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", *names], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)


def test_the_state_of_another_repository_is_not_ours(tmp_path: Path) -> None:
    ours, installed = tmp_path / "ours", tmp_path / "env" / "nanogpt"
    for folder in (ours, installed):
        folder.mkdir(parents=True)
        (folder / "gpt.py").write_text("")
    commit(tmp_path, "ours")
    state = git_state(ours)
    assert state is not None and len(state["commit"]) == 40
    assert git_state(installed) is None


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_every_python_has_one_exact_version_of_each_package(version: str) -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    names = [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": version})]
    assert len(names) == len(set(names)) and {"torch", "numpy", "pytest", "matplotlib"} <= set(names)
