"""Continuing with another config, other data, another version: refused with both values, or accepted and noted."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from nanogpt import schema
from nanogpt.checkpoint import seal_manifest
from nanogpt.config import TrainConfig
from nanogpt.errors import BadCheckpoint, BadData, BadInput
from nanogpt.run_directory import RunDirectory, check_changes, locate_run
from nanogpt.training.run import train
from tests import ranks
from tests.ranks import Fault

Build = Callable[..., TrainConfig]
Reference = Callable[..., dict[str, str]]


def test_every_key_has_a_class() -> None:
    """fixed, guarded or free: a new key must say whether a run that continues may change it."""
    kinds = {key: schema.change_policy(field) for key, field in schema.iter_fields(TrainConfig)}
    assert set(kinds.values()) == {"fixed", "guarded", "free"}
    assert {kinds[key] for key in kinds if key.startswith(("model.", "data.")) and key.split(".")[1] != "name"} == {
        "fixed",
        "free",
    }
    assert kinds["model.n_layer"] == kinds["training.seed"] == kinds["data.tokenizer"] == "fixed"
    assert kinds["optimizer.lr"] == kinds["training.steps"] == kinds["hardware.precision"] == "guarded"
    assert kinds["tracking.log_every"] == kinds["hardware.devices"] == kinds["runs_dir"] == "free"

    def sections(model: type[BaseModel]) -> None:
        for field in model.model_fields.values():
            assert schema.change_policy(field) in ("fixed", "guarded", "free")

    sections(TrainConfig)


OTHER: dict[str, object] = {  # another valid value of every kind of key
    "name": "other",
    "training.steps": 40,
    "model.n_layer": 3,
    "model.dropout": 0.2,
    "optimizer.lr": 5e-3,
    "schedule.warmup_steps": 3,
    "training.seed": 5,
    "training.batch_tokens": 256,
    "eval.every": 4,
    "hardware.micro_batch_size": 4,
    "checkpoint.every": 3,
    "tracking.log_every": 1,
    "data.order": "random",
}


@pytest.mark.parametrize("key", OTHER)
def test_f38_each_class_does_what_it_says(config: Build, tmp_path: Path, key: str) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "config.json").write_text(schema.to_json(config()))
    kind = schema.change_policy(dict(schema.iter_fields(TrainConfig))[key])
    changed = config(**{key: OTHER[key]})
    old = dict(schema.iter_values(config()))[key]
    if kind == "free":
        assert check_changes(run, changed) == [f"{key}: {old} -> {OTHER[key]}"]
        return
    with pytest.raises(BadCheckpoint) as caught:
        check_changes(run, changed)
    assert f"{key} (was {old}, now {OTHER[key]})" in str(caught.value)
    assert BadCheckpoint.exit_code == 4
    if kind == "guarded":
        allowed = config(**{key: OTHER[key]}, **{"resume.allow_change": [key]})
        assert check_changes(run, allowed) == [f"{key}: {old} -> {OTHER[key]}"]
    else:
        with pytest.raises(BadInput, match="is not a guarded key"):
            config(**{key: OTHER[key]}, **{"resume.allow_change": [key]})


@pytest.mark.parametrize("key", [key for key, _ in schema.iter_fields(TrainConfig)])
def test_f38_every_key(config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """A run that was made with another value of the key, whatever it was."""
    real = schema.iter_values
    run = RunDirectory(tmp_path)
    (tmp_path / "config.json").write_text(schema.to_json(config()))
    first = iter([True])  # the first config that is asked for its values is the run's own

    def values(section: BaseModel, prefix: str = ""):  # type: ignore[no-untyped-def]
        old = next(first, False)
        return ((name, "something else" if old and name == key else value) for name, value in real(section, prefix))

    monkeypatch.setattr(schema, "iter_values", values)
    kind = schema.change_policy(dict(schema.iter_fields(TrainConfig))[key])
    if kind == "free" or key.startswith(("hardware.precision", "resume.")):  # see below; which run it is
        assert len(check_changes(run, config())) == (
            not key.startswith(("resume.", "new_attempt", "attempt", "stop_at_fraction"))
        )
    else:
        with pytest.raises(BadCheckpoint, match=rf"{key} \(was something else, now"):
            check_changes(run, config())


def test_a_run_continues_with_a_longer_horizon(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    """20 steps, then 30 in the same directory; the lineage has the change, the same command goes on."""
    train(config())
    path = locate_run(config())
    longer = {"training.steps": 30, "resume.run": path.name}
    with pytest.raises(
        BadCheckpoint, match=r"training.steps \(was 20, now 30\); resume.allow_change=\[training.steps\]"
    ):
        train(config(**longer))
    allowed = config(**longer, **{"resume.allow_change": ["training.steps"]})
    assert train(allowed) == 0
    assert RunDirectory(path).checkpoints.steps()[-1] == 30
    starts = json.loads((path / "provenance.json").read_text())
    assert starts[-1]["changes"] == ["training.steps: 20 -> 30"] and starts[-1]["from_step"] == 20
    capsys.readouterr()
    assert train(config(**longer)) == 0
    assert "finished already, at step 30" in capsys.readouterr().out
    assert train(config()) == 0
    assert "changed training.steps: 20 -> 30; new_attempt=true trains" in capsys.readouterr().out


def test_a_refused_change_leaves_the_run_as_it_was(config: Build, corpus: Path, tmp_path: Path) -> None:
    """Allowed, but the model doesn't fit the other data: the original command goes on."""
    train(config())
    before = (locate_run(config()) / "config.json").read_bytes()
    (tmp_path / "other.txt").write_text("ACGT" * 4000)
    changed = {"data.source": str(tmp_path / "other.txt"), "resume.allow_change": ["data"]}
    with pytest.raises(BadCheckpoint, match="is of another model"):
        train(config(**changed, **{"resume.run": str(locate_run(config()))}))
    assert (locate_run(config()) / "config.json").read_bytes() == before
    assert train(config()) == 0


def test_a_horizon_the_run_is_past(config: Build) -> None:
    train(config())
    past = {"training.steps": 10, "resume.run": locate_run(config()).name, "resume.allow_change": ["training.steps"]}
    with pytest.raises(BadInput, match="is step 10, but the run is at step 20 already"):
        train(config(**past))


def test_a_checkpoint_of_another_model(config: Build) -> None:
    """The differing keys, all of them, old and new."""
    train(config())
    other = {"model.n_layer": 3, "model.n_embd": 32, "resume.run": str(locate_run(config()))}
    with pytest.raises(BadCheckpoint) as caught:
        train(config(**other))
    assert "model.n_layer (was 2, now 3), model.n_embd (was 16, now 32)" in str(caught.value)
    with pytest.raises(BadInput, match=r"resume.run=nowhere: not a run directory"):
        train(config(**{"resume.run": "nowhere"}))
    with pytest.raises(BadInput, match=r"resume.run=x: continues a run, and new_attempt=true starts one"):
        config(new_attempt=True, **{"resume.run": "x"})


def test_another_precision_is_guarded(config: Build) -> None:
    train(config(**{"training.steps": 4}))
    run = locate_run(config(**{"training.steps": 4}))
    bf16 = {"training.steps": 4, "hardware.precision": "bf16"}
    assert locate_run(config(**bf16)) != run
    bf16["resume.run"] = str(run)
    with pytest.raises(BadCheckpoint, match=r"hardware.precision=bf16: the run was trained in fp32"):
        train(config(**bf16))
    assert train(config(**bf16, **{"resume.allow_change": ["hardware.precision"]})) == 0


def test_f23_data_that_changed(config: Build, tmp_path: Path) -> None:
    """Two bytes more in a token file: refused with its name, unless allowed."""
    ids = bytes(range(0, 60)) * 200
    folder = tmp_path / "tokens"
    folder.mkdir()
    for name in ("train_1.bin", "train_2.bin", "val.bin"):
        (folder / name).write_bytes(b"".join(bytes([i, 0]) for i in ids))
    foreign = {"data.source": str(folder), "data.tokenizer": "byte"}
    train(config(**foreign))
    run = locate_run(config(**foreign))
    with (folder / "train_2.bin").open("ab") as file:
        file.write(b"\x01\x00")
    again = foreign | {"resume.run": str(run)}
    with pytest.raises(BadCheckpoint, match=r"data.source_sha256 \(was "):
        train(config(**again))
    file = run / "config.json"  # as one from before digests were written: then the tokens themselves are compared
    stored = json.loads(file.read_text())
    del stored["data"]["source_sha256"]
    file.write_text(json.dumps(stored))
    with pytest.raises(BadData, match=r"not the data this run was trained on .*first differing file train_2.bin"):
        train(config(**again))
    assert train(config(**again, **{"resume.allow_change": ["data"]})) == 0


def test_f24_clocks_may_jump(
    config: Build, undisturbed: Reference, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ten years ahead, a day back, times of the files upside down: the newest checkpoint is that of the last step."""
    built = config()
    assert ranks.run(built, 1, [Fault("nanogpt.training.loop.train_step", 14, "SIGTERM")])[0] == [85]
    for age, path in enumerate(sorted(locate_run(built).glob("checkpoints/*"))):
        os.utime(path, (1e9 - age * 1e6, 1e9 - age * 1e6))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + random_jump())
    assert train(built) == 0
    assert ranks.result(built) == undisturbed()


def random_jump() -> float:
    random_jump.calls = getattr(random_jump, "calls", 0) + 1  # type: ignore[attr-defined]
    return 3.15e8 if random_jump.calls % 2 else -86_400.0  # type: ignore[attr-defined]


def test_f39_a_later_version_wrote_it(config: Build) -> None:
    """Not damage: nothing is put aside, and an older checkpoint is not used in its place."""
    train(config())
    manifest = locate_run(config()) / "checkpoints/step-00000020/manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(seal_manifest({"format": 7, "step": 20, "files": content["files"]}))
    with pytest.raises(BadCheckpoint, match="written by format 7, this program reads up to 2; update it"):
        train(config())
    assert manifest.exists()


def test_f39_changed_code_is_told_and_noted(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    ranks.run(config(), 1, [Fault("nanogpt.training.loop.train_step", 5, "SIGTERM")])
    file = locate_run(config()) / "provenance.json"
    starts = json.loads(file.read_text())
    file.write_text(json.dumps([starts[0] | {"code": "0" * 64}]))
    assert train(config()) == 0
    assert "warning: the code of nanogpt/ has changed since the last start" in capsys.readouterr().out
    codes = [start["code"] for start in json.loads(file.read_text())]
    assert codes[0] != codes[1] == starts[0]["code"]
