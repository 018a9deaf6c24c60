"""Folders of exports: a path with `..`, a link, a used folder or a run directory loses no files."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanogpt.config import ExportConfig, TrainConfig
from nanogpt.errors import BadEnvironment, BadInput, LabError
from nanogpt.interop.export import check_export_target, export_model
from nanogpt.interop.export_folder import ExportFolder, check_export_folder, stage_export
from nanogpt.run_directory import locate_run
from nanogpt.training.run import train


def tree(folder: Path) -> dict[str, str]:
    """Return every file and folder below, with its content."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in sorted(folder.rglob("*"))
    }


def write_export(out: Path, overwrite: bool = False, text: str = "weights") -> ExportFolder:
    folder = check_export_folder(out, overwrite, None, {})
    with stage_export(folder, {"format": "hf"}) as partial:
        (partial / "model.safetensors").write_text(text)
    return folder


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("new/..", "is or holds the current folder"),
        (".", "is or holds the current folder"),
        ("..", "is or holds the current folder"),
        ("/", "is or holds the current folder"),
        ("new/../kept", r"kept\): exists, and isn't an export that could be replaced: it has no export.json"),
        ("kept", "exists, and isn't an export that could be replaced: it has no export.json"),
        ("kept/thesis.txt", "exists, and isn't a folder"),
        ("kept/thesis.txt/new", "thesis.txt is a file"),
        ("to_kept", r"kept\): exists, and isn't an export"),
        ("to_kept/../kept", "exists, and isn't an export"),
        ("model", "exists, and isn't an export"),
        ("run", "exists, and isn't an export"),
        ("run/checkpoints/step-00000009", "lies in the run directory"),
        ("run/plots", "lies in the run directory"),
        ("run/checkpoints/../checkpoints", "lies in the run directory"),
        ("a\0b", "not a path that can be used"),
        ("source", "is or holds the weights"),
        ("fifo", "exists, and isn't a folder"),
    ],
)
def test_nothing_is_lost(
    out: str, message: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("work/kept", "work/model", "work/run/checkpoints", "work/source"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    Path("kept/thesis.txt").write_text("thesis")
    Path("model/config.json").write_text("{}")  # file names of an export, written by another program
    Path("model/model.safetensors").write_text("trained for a month")
    Path("run/config.json").write_text("{}")
    os.mkfifo("fifo")
    Path("to_kept").symlink_to("kept")
    before = tree(tmp_path)
    with pytest.raises(BadInput, match=message):
        check_export_folder(Path(out), overwrite, None, {"the weights": Path("source")})
    assert tree(tmp_path) == before


def test_only_an_unchanged_export_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    write_export(out)
    assert sorted(tree(tmp_path)) == ["deep", "deep/er", "deep/er/out"] + [
        f"deep/er/out/{name}" for name in ("export.json", "model.safetensors")
    ]
    with pytest.raises(BadInput, match="exists; overwrite=true replaces it"):
        write_export(out)
    write_export(out, overwrite=True, text="newer")
    assert (out / "model.safetensors").read_text() == "newer" and os.listdir(out.parent) == ["out"]
    (out / "model.safetensors").write_text("fine-tuned here")
    with pytest.raises(BadInput, match=r"model.safetensors was changed since the export"):
        write_export(out, overwrite=True)
    (out / "model.safetensors").write_text("newer")
    (out / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"mine.txt isn't of the export"):
        write_export(out, overwrite=True)
    (out / "mine.txt").unlink()
    listed = json.loads((out / "export.json").read_text())
    (out / "export.json").write_text(json.dumps({"files": listed["files"] | {"../../x": {"sha256": ""}}}))
    with pytest.raises(BadInput, match=r"\.\./\.\./x is missing"):
        write_export(out, overwrite=True)


def test_an_empty_folder_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_export(tmp_path / "out")
    assert "model.safetensors" in os.listdir(tmp_path / "out")


def test_what_comes_in_between_stays(tmp_path: Path) -> None:
    """Files that appear while the export is written are not deleted, and the earlier export stays."""
    out = tmp_path / "out"
    folder = check_export_folder(out, False, None, {})
    with pytest.raises(BadEnvironment, match="can't be written"), stage_export(folder, {}):
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    assert tree(tmp_path) == {"out": "", "out/mine.txt": "mine"}
    other = tmp_path / "other"
    write_export(other)
    folder = check_export_folder(other, True, None, {})
    with pytest.raises(BadInput, match="was changed while the export was written"), stage_export(folder, {}):
        (other / "mine.txt").write_text("mine")
    assert sorted(os.listdir(other)) == ["export.json", "mine.txt", "model.safetensors"]
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    folder = check_export_folder(tmp_path / "deep" / "er" / "out", False, None, {})
    with pytest.raises(RuntimeError), stage_export(folder, {}) as partial:
        (partial / "model.safetensors").write_text("half")
        raise RuntimeError
    assert tree(tmp_path) == {}


def test_the_folder_of_a_run(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default is a folder in the run directory; a model that reads back otherwise is not exported."""
    built = config(**{"training.steps": 2, "model.activation": "gelu"})
    train(built)
    run = locate_run(built)
    before = tree_names(run)
    wanted = ExportConfig(runs_dir=built.runs_dir, format="nanogpt")
    assert check_export_target(wanted).path == run / "nanogpt"
    for out in (run / "checkpoints", run / "checkpoints" / "new", run / "hf" / ".." / "plots", run, run.parent):
        for overwrite in (False, True):
            with pytest.raises(BadInput):
                export_model(wanted.model_copy(update={"out": str(out), "overwrite": overwrite}))
    with monkeypatch.context() as patched:
        patched.setattr("nanogpt.interop.export.collect_weights", lambda model: changed(model))
        with pytest.raises(LabError, match=r"logits differ in init_from by up to .* nothing was written"):
            export_model(wanted)
    assert tree_names(run) == before
    assert export_model(wanted) == 0
    assert tree_names(run) == before | {
        f"nanogpt{name}" for name in ("", "/ckpt.pt", "/export.json", "/meta.pkl", "/tokenizer.json")
    }


def tree_names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def changed(model: Any) -> dict[str, Any]:
    return {name: parameter.detach() + 0.01 for name, parameter in model.named_parameters()}
