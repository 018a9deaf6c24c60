"""`nanogpt doctor`: well where all is well, and where something is broken it says what and what to do."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from nanogpt.config import DoctorConfig, TrainConfig
from nanogpt.config.commands import CheckName
from nanogpt.doctor import invariants, machine, run
from nanogpt.doctor.finding import Check, Finding, run_check
from nanogpt.doctor.run import CHECKS
from nanogpt.doctor.trainings import tiny_config, train_side_by_side
from nanogpt.errors import BadEnvironment
from nanogpt.model.gpt import GPT
from tests import ranks
from tests.commands import command

ROOT = Path(__file__).parents[2]
CPU = DoctorConfig(device="cpu")
KEY = "0123456789abcdef0123456789abcdef01234567"


def doctor(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return command("-m", "cli", "doctor", *words, folder=folder, PYTHONPATH=str(ROOT), **environment)


def train_forked(_: Path, *trainings: tuple[TrainConfig, int]) -> None:
    """Replace `train_side_by_side`: train in processes that have loaded torch already, one after the other."""
    for config, world in trainings:
        codes, output = ranks.run(config, world)
        assert codes == [0] * world, output


@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", invariants.CHECKS)
def test_what_must_hold_holds_here(name: str, forked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "logits":
        pytest.importorskip("transformers")
    if forked:
        monkeypatch.setattr(invariants, "train_side_by_side", train_forked)
    found = run_check(CHECKS[name], CPU)
    assert (found.state, found.remedy) == ("ok", ""), found


def test_numbers_that_are_all_zero_are_no_agreement() -> None:
    zeros = torch.zeros(2, 3)
    with pytest.raises(BadEnvironment, match="computes nothing"):
        invariants.compare_tensors(zeros, zeros, 1e-3, "logits")


def test_every_check_can_be_chosen() -> None:
    assert set(get_args(CheckName)) == set(CHECKS)


def other_logits(patch: pytest.MonkeyPatch) -> None:
    """Make the head see features that are one percent too large."""
    forward = GPT.logits
    patch.setattr(GPT, "logits", lambda self, x: forward(self, x * 1.01))


def other_positions(patch: pytest.MonkeyPatch) -> None:
    """Make the cache count positions from one."""
    advance = invariants.KVCache.advance
    patch.setattr(invariants.KVCache, "advance", lambda self, count: (advance(self, count) + 1) % 16)


def other_mean(patch: pytest.MonkeyPatch) -> None:
    """Make a step forget all micro-batches but the first."""
    step = invariants.train_step

    def forgetful(state: Any, parts: list[Any], config: Any) -> Any:
        return step(state, parts[:1], config)

    patch.setattr(invariants, "train_step", forgetful)


def other_second_training(**changes: dict[str, Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Return a patch that changes the second of two trainings that should be equal."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def differing(folder: Path, name: str, **usual: dict[str, Any]) -> Any:
            return tiny_config(folder, name, **usual, **(changes if name in ("two", "parts") else {}))

        patch.setattr(invariants, "tiny_config", differing)
        patch.setattr(invariants, "train_side_by_side", train_forked)

    return plant


@pytest.mark.parametrize(
    ("name", "plant", "says", "remedy"),
    [
        ("logits", other_logits, "from transformers' logits", "tests/interop"),
        ("cache", other_positions, "from logits without a cache", "tests/generation/test_decode.py"),
        ("accumulation", other_mean, "from losses of the whole batch", "tests/training/test_step.py"),
        ("ranks", other_second_training(training={"seed": 5}), "from losses of one rank", "hardware.devices=1"),
        ("resume", other_second_training(optimizer={"weight_decay": 0.0}), "these differ: ", "don't rely on restarts"),
    ],
)
def test_what_is_broken_is_red_and_says_what_to_do(
    name: str, plant: Callable[[pytest.MonkeyPatch], None], says: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "logits":
        pytest.importorskip("transformers")
    plant(monkeypatch)
    found = run_check(CHECKS[name], CPU)
    assert found.state == "failed" and says in found.what and remedy in found.remedy, found


def test_numbers_that_are_none_are_red() -> None:
    with pytest.raises(BadEnvironment, match="differ by nan"):
        invariants.compare_tensors(torch.tensor([float("nan")]), torch.tensor([1.0]), 1e-4, "others")


def test_a_training_that_fails_says_its_own_last_line(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "one", model={"block_size": 64}, data={"val_fraction": 0.001})
    with pytest.raises(BadEnvironment, match=r"^data\.val_fraction=0\.001: the val split .* has \d+ tokens"):
        train_side_by_side(tmp_path, (config, 1))


def test_one_that_raises_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: DoctorConfig) -> Finding:
        raise RuntimeError("a first line\nthe very reason")

    def leaving(_: DoctorConfig) -> Finding:
        raise SystemExit("left")

    checks = {"torch": Check(broken, "turn it off and on"), "slurm": Check(leaving, "stay"), "python": CHECKS["python"]}
    monkeypatch.setattr(run, "CHECKS", checks)
    assert run.run_checks(CPU) == 5
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["failed", "torch", "RuntimeError:", "the", "very", "reason"]
    assert lines[1].strip() == "-> turn it off and on"
    assert lines[4].startswith("ok     python")
    assert lines[-1] == "2 of 3 checks failed: torch, slurm"


def test_no_secret_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def telling(_: DoctorConfig) -> Finding:
        raise ValueError(f"can't use {KEY}")

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(run, "CHECKS", {"wandb": Check(telling, f"unset {KEY}"), "tokenizer": CHECKS["tokenizer"]})
    assert run.run_checks(CPU) == 5
    said = capsys.readouterr().out
    assert KEY not in said and "can't use <hidden>" in said and "unset <hidden>" in said
    assert str(tmp_path) in said, "a folder is no secret, whatever its variable is called"


@pytest.mark.parametrize("place", ["variable", "file"])
def test_a_key_of_wandb_is_found_and_not_told(place: str, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    there = {"HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path), "NETRC": str(tmp_path / ".netrc")}
    without = doctor(tmp_path, "checks=[wandb]", **there, WANDB_API_KEY="")
    assert without.returncode == 0 and "not logged in" in without.stdout
    if place == "file":
        (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
        (tmp_path / ".netrc").chmod(0o600)
    done = doctor(tmp_path, "checks=[wandb]", **there, WANDB_API_KEY=KEY if place == "variable" else "")
    assert done.returncode == 0 and done.stdout.startswith("ok     wandb  logged in"), done
    assert KEY not in done.stdout + done.stderr


def test_the_environment_stays_as_it_was() -> None:
    pytest.importorskip("wandb")
    before = dict(os.environ)
    run_check(CHECKS["wandb"], CPU)
    assert dict(os.environ) == before


def test_the_command(tmp_path: Path) -> None:
    """Green, red and refused; and nothing is left in the folder."""
    done = doctor(tmp_path, "checks=[python,disk,shared_memory]")
    assert done.returncode == 0 and done.stdout.endswith("all is well\n"), done
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("ok", "note"))] == [
        "python",
        "disk",
        "shared_memory",
    ]
    done = doctor(tmp_path, "checks=[pithon]")
    assert (done.returncode, done.stdout) == (2, "")
    assert "checks=pithon" in done.stderr and "did you mean 'python'?" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    done = doctor(tmp_path, "checks=[device,python]", "device=cuda")
    assert done.returncode == 5 and done.stderr == ""
    assert "failed device  device=cuda: no CUDA device here" in done.stdout and "-> device=cpu" in done.stdout
    assert "ok     python" in done.stdout


@pytest.mark.slow
def test_a_terminal_gets_colours(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-m", "cli", "doctor", "checks=[python,data]"]
    process = subprocess.Popen(command, stdout=follower, stderr=follower, cwd=tmp_path, env=environment)
    os.close(follower)
    said = ""
    with suppress(OSError):  # the end of a terminal
        while part := os.read(leader, 4096):
            said += part.decode(errors="replace")
    os.close(leader)
    assert process.wait() == 0 and "\x1b[32mok" in said and "\x1b[33mnote" in said


def lacking(*_: object) -> None:
    raise BadEnvironment("no tokenizer")


def test_disk_memory_cluster_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DoctorConfig(runs_dir=str(tmp_path / "not" / "yet"), data_dir=str(tmp_path / "data"))
    assert str(tmp_path) in machine.check_disk(config).what and list(tmp_path.iterdir()) == []
    assert machine.check_data(config).state == "note"
    (tmp_path / "data" / "bad-1234").mkdir(parents=True)
    (tmp_path / "data" / "bad-1234" / "meta.json").write_text("{}")
    found = run_check(CHECKS["data"], config)
    assert found.state == "failed" and "meta.json" in found.what and "overwrite=true" in found.remedy
    monkeypatch.setattr(machine, "open_prepared", lacking)
    found = run_check(CHECKS["data"], config)
    assert (found.state, found.what, found.remedy) == ("note", "bad-1234: no tokenizer", "see tokenizer")
    monkeypatch.setattr(machine, "SLOW_DISK", 1e15)
    assert machine.check_disk(config).state == "note"
    for name in ("sbatch", "sacct"):
        (tmp_path / name).write_text("#!/bin/sh\necho slurm 23.11\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine.check_slurm(config).what.startswith("slurm 23.11: sbatch")
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    assert run_check(CHECKS["slurm"], config).what == "sbatch --version: no controller"
