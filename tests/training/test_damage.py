"""Damaged checkpoints and data: the next good checkpoint is taken, exactly, or the error says what is wrong."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.config import TrainConfig
from nanogpt.run_directory import RunDirectory, locate_run
from tests import ranks
from tests.ranks import Fault, Started, goes_on

Build = Callable[..., TrainConfig]
Reference = Callable[..., dict[str, str]]


def stopped_early(config: TrainConfig) -> Path:
    """A run that ended at step 14; returns its newest checkpoint."""
    assert ranks.run(config, 1, [Fault("nanogpt.training.loop.train_step", 14, "SIGTERM")])[0] == [85]
    return RunDirectory(locate_run(config)).checkpoints.path(14)


def test_f10_bit_flips(config: Build, undisturbed: Reference) -> None:
    """Any bit of any file of the newest checkpoint: found, named, put aside, and the one before is used."""
    checkpoints = RunDirectory(stopped_early(config()).parents[1]).checkpoints
    newest = checkpoints.path(14)
    draw = random.Random(7)
    for _ in range(50):
        file = draw.choice(sorted(newest.iterdir()))
        content = bytearray(file.read_bytes())
        place, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        content[place] ^= bit
        file.write_bytes(content)
        loaded, bad = checkpoints.load_newest()
        assert loaded is not None and loaded.path != newest and str(file) in str(bad[0]), (file, place, bit)
        content[place] ^= bit
        file.write_bytes(content)
    (newest / "model.safetensors").write_bytes(
        bytes([content[0] ^ 1]) + (newest / "model.safetensors").read_bytes()[1:]
    )
    output = goes_on(config(), undisturbed)
    assert "model.safetensors: corrupt, sha256" in output and "continuing at step 12" in output
    assert (newest.parent / ".bad-step-00000014").is_dir()


def damage(kind: str, folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    size = file.stat().st_size
    if kind == "cut":
        os.truncate(file, size // 2)
    elif kind == "empty":
        os.truncate(file, 0)
    elif kind == "zeros":
        os.truncate(file, size // 2)
        os.truncate(file, size)
    elif kind == "missing":
        file.unlink()
    elif kind == "no manifest":
        (folder / "manifest.json").unlink()
    elif kind == "manifest":
        (folder / "manifest.json").write_text("[]")
    elif kind == "extra":
        (folder / "model.pkl").write_bytes(b"\x80\x04.")


KINDS = ("empty", "zeros", "missing", "no manifest", "manifest", "extra")


def test_f11_damaged_files_are_found(config: Build) -> None:
    """Whatever became of the newest checkpoint, the one before is the newest that is good."""
    newest = stopped_early(config())
    checkpoints = RunDirectory(newest.parents[1]).checkpoints
    shutil.copytree(newest, newest.parents[1] / "whole")
    for kind in ("cut", *KINDS):
        damage(kind, newest)
        loaded, bad = checkpoints.load_newest()
        assert loaded is not None and loaded.path == checkpoints.path(12) and str(newest) in str(bad), kind
        shutil.rmtree(newest)
        shutil.copytree(newest.parents[1] / "whole", newest)
    loaded, bad = checkpoints.load_newest()
    assert loaded is not None and loaded.path == newest and not bad


@pytest.mark.parametrize("kind", ["cut", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS)])
def test_f11_a_run_goes_on_from_the_checkpoint_before(config: Build, undisturbed: Reference, kind: str) -> None:
    damage(kind, stopped_early(config()))
    output = goes_on(config(), undisturbed)
    assert "warning: " in output and "step-00000014" in output and "continuing at step 12" in output


@pytest.mark.slow
def test_f11_damage_on_two_ranks(config: Build, undisturbed: Reference) -> None:
    """Rank 0 falls back, and the others go with it."""
    assert ranks.run(config(), 2, [Fault("nanogpt.training.loop.train_step", 14, "SIGTERM")])[0] == [85, 85]
    damage("cut", locate_run(config()) / "checkpoints/step-00000014")
    goes_on(config(), undisturbed, 2)


@pytest.mark.parametrize("world", [1, 2])
def test_f12_no_good_checkpoint_is_an_error_not_a_new_start(config: Build, world: int) -> None:
    stopped_early(config())
    names = sorted(path.name for path in locate_run(config()).glob("checkpoints/step-*"))
    for name in names:
        damage("cut", locate_run(config()) / "checkpoints" / name)
    codes, output = ranks.run(config(), world)
    assert codes == [4] * world
    assert "no usable checkpoint" in output and all(name in output for name in names) and "new_attempt=true" in output
    assert sorted(path.name for path in locate_run(config()).glob("checkpoints/*")) == names


def test_f12_checkpoints_that_are_gone_are_not_a_new_start(config: Build) -> None:
    stopped_early(config())
    shutil.rmtree(locate_run(config()) / "checkpoints")
    before = (locate_run(config()) / "metrics.jsonl").read_bytes()
    codes, output = ranks.run(config())
    assert codes == [4] and "its checkpoints are gone; new_attempt=true starts another attempt" in output
    assert (locate_run(config()) / "metrics.jsonl").read_bytes() == before


def test_f13_a_save_replaced_but_not_yet_in_place(config: Build, undisturbed: Reference) -> None:
    """Gone between the two renames of a step that is saved again, with no other checkpoint there."""
    assert ranks.run(config(), 1, [Fault("nanogpt.training.loop.train_step", 3, "SIGTERM")])[0] == [85]
    folder = locate_run(config()) / "checkpoints"
    (folder / "step-00000003").rename(folder / ".old-step-00000003")
    output = goes_on(config(), undisturbed)
    assert "continuing at step 3" in output


def test_f21_a_shard_cut_while_running(config: Build, undisturbed: Reference) -> None:
    built = config(**{"training.steps": 2000, "eval.every": 2000})
    started = Started(built).until_rows(4)
    (shard,) = Path(built.data.dir).glob("*/train*.bin")
    content = shard.read_bytes()
    os.truncate(shard, 2000)
    assert started.wait() == [3]
    assert f"{shard}: ends at token" in started.output()
    shard.write_bytes(content)
    goes_on(config(), undisturbed)
