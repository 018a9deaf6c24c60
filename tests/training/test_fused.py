"""Runs trained as one network, against the same runs trained alone."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput, Diverged, Locked
from nanogpt.metrics_file import Row, read_rows
from nanogpt.run_directory import RunDirectory, locate_run, open_run
from nanogpt.training.fused import train_fused
from nanogpt.training.fused_step import FusedStep
from nanogpt.training.loop import Loop
from nanogpt.training.run import train
from nanogpt.training.step import PendingStep
from tests import ranks

Build = Callable[..., TrainConfig]
CHANGES: list[dict[str, object]] = [
    {"training.seed": 1},
    {"training.seed": 2, "optimizer.lr": 3e-3, "model.dropout": 0.0, "schedule.warmup_steps": 4},
    {"training.seed": 3, "optimizer.weight_decay": 0.5, "model.dropout": 0.3, "optimizer.grad_clip": 0.05},
]
MODERN: dict[str, object] = {
    "model.activation": "swiglu",
    "model.norm": "rmsnorm",
    "model.position": "rotary",
    "model.qk_norm": True,
    "model.tie_weights": False,
    "model.logit_softcap": 15.0,
    "model.conv": ["attention", "mlp"],
    "model.init": "fan_in",
    "model.zero_init": True,
}


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    loaded, damaged = RunDirectory(locate_run(config)).checkpoints.load_newest()
    assert loaded is not None and not damaged
    return loaded.model | {f"optimizer/{key}": value for key, value in loaded.optimizer.items()}


def rows(config: TrainConfig) -> list[Row]:
    return read_rows(locate_run(config) / "metrics.jsonl")


def state(config: TrainConfig) -> object:
    return RunDirectory(locate_run(config)).read_status()["state"]


@pytest.mark.parametrize(
    "form",
    [
        pytest.param({}, id="gpt2", marks=pytest.mark.slow),
        pytest.param(MODERN, id="modern"),
        pytest.param({"optimizer.name": "muon"}, id="muon", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_each_run_equals_its_single_run(config: Build, form: dict[str, object], threads: int) -> None:
    """Rows of every step, weights and moments to the bit, for runs that differ in all that may differ.

    Each model is computed by one thread, as the run alone with hardware.threads=1.
    """
    usual = {"tracking.log_every": 1} | form
    alone = [config(name="alone", **usual | changes) for changes in CHANGES]
    together = [config(name="together", **usual | {"hardware.threads": threads} | changes) for changes in CHANGES]
    for single in alone:
        assert train(single) == 0
    assert train_fused(together) == [0, 0, 0]
    for ours, theirs in zip(together, alone, strict=True):
        found, expected = rows(ours), rows(theirs)
        assert [row for row in found if "loss" in row] == [row for row in expected if "loss" in row]
        assert [row for row in found if "val_loss" in row] == [
            pytest.approx(row, rel=1e-6, abs=0) for row in expected if "val_loss" in row
        ]  # on two threads rounding differs
        found_weights, expected_weights = weights(ours), weights(theirs)
        assert found_weights.keys() == expected_weights.keys()
        assert all(torch.equal(tensor, found_weights[name]) for name, tensor in expected_weights.items())
        assert state(ours) == "finished"
        if threads == 1:
            assert ranks.result(ours) == ranks.result(theirs)


def test_what_is_recorded(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    """Provenance and checkpoints say that a run was fused; continued alone it goes on, with a warning."""
    together = [config(name="s", stop_at_fraction=0.5, **changes) for changes in CHANGES]
    assert train_fused(together) == [0, 0, 0]
    run = RunDirectory(locate_run(together[0]))
    assert run.read_starts()[-1]["arithmetic"]["fused"] is True
    out = capsys.readouterr().out
    assert "[s] step 10  val" in out and "fused" not in out
    assert train(config(name="s", **CHANGES[0])) == 0
    assert "fused True -> False: the same data in the same order, but rounding can differ" in capsys.readouterr().out
    alone = config(name="alone", **CHANGES[0])
    assert train(alone) == 0
    assert rows(alone)[-1]["val_loss"] == pytest.approx(rows(together[0])[-1]["val_loss"], rel=1e-6)
    assert not RunDirectory(locate_run(alone)).read_starts()[-1]["arithmetic"]["fused"]


@pytest.mark.slow
def test_a_signal_stops_all_at_one_step_and_the_same_command_continues(
    config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit as if nothing had happened."""
    calm = [config(name="calm", **changes) for changes in CHANGES]
    assert train_fused(calm) == [0, 0, 0]
    stopped = [config(name="stopped", **changes) for changes in CHANGES]
    real, steps = FusedStep.take_step, 0

    def signalled(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(FusedStep, "take_step", signalled)
    assert train_fused(stopped) == [85, 85, 85]
    assert [RunDirectory(locate_run(run)).read_status()["step"] for run in stopped] == [7, 7, 7]
    assert train_fused(stopped) == [0, 0, 0]
    for ours, theirs in zip(stopped, calm, strict=True):
        assert ranks.result(ours) == ranks.result(theirs)


def train_until_save(configs: list[str], call: int) -> None:
    """Train in a process that dies in its n-th save."""
    ranks.plant(ranks.Fault("nanogpt.checkpoint.Checkpoints.save", call, "SIGKILL"))
    train_fused([schema.from_dict(TrainConfig, json.loads(text)) for text in configs])


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("call", [5, *(pytest.param(call, marks=pytest.mark.slow) for call in (1, 8))])
def test_killed_between_the_saves_of_two_runs(config: Build, threads: int, call: int) -> None:
    """Those with the earlier checkpoint catch up, and all end bit for bit as if nothing had happened."""
    calm, killed = (
        [config(name=name, **{"hardware.threads": threads} | changes) for changes in CHANGES] for name in ("a", "b")
    )
    assert train_fused(calm) == [0, 0, 0]
    process = ranks.processes.Process(target=train_until_save, args=([schema.to_json(run) for run in killed], call))
    process.start()
    process.join(ranks.HANG)
    assert process.exitcode == -signal.SIGKILL
    assert train_fused(killed) == [0, 0, 0]
    for ours, theirs in zip(killed, calm, strict=True):
        assert ranks.result(ours) == ranks.result(theirs)


def poison(monkeypatch: pytest.MonkeyPatch, seed: int, at: int) -> None:
    """Before its step `at` the weights of the run with this seed become nan."""
    real = FusedStep.take_step

    def poisoned(fused: FusedStep, loops: Sequence[Loop]) -> list[PendingStep]:
        for loop in loops:
            if loop.config.training.seed == seed and loop.state.step == at:
                with torch.no_grad():
                    loop.state.model.token_embedding.weight.fill_(float("nan"))
        return real(fused, loops)

    monkeypatch.setattr(FusedStep, "take_step", poisoned)


def test_a_run_that_diverges_leaves_and_the_others_go_on(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their numbers are those of a group without it."""
    pair = [config(name="pair", **changes) for changes in CHANGES[1:]]
    assert train_fused(pair) == [0, 0]
    wild = config(name="wild", **{"training.seed": 5})
    poison(monkeypatch, 5, 7)
    others = [config(name="others", **changes) for changes in CHANGES[1:]]
    ends = train_fused([others[0], wild, others[1]])
    assert isinstance(ends[1], Diverged) and ends[::2] == [0, 0]
    assert state(wild) == "diverged" and "step 8: loss nan" in str(ends[1])
    for ours, theirs in zip(others, pair, strict=True):
        assert ranks.result(ours) == ranks.result(theirs)


@pytest.mark.slow
def test_a_run_that_cant_be_opened_doesnt_end_the_others(config: Build) -> None:
    runs = [config(**changes) for changes in CHANGES]
    with open_run(runs[1]):
        ends = train_fused(runs)
    assert isinstance(ends[1], Locked) and ends[::2] == [0, 0]
    assert train_fused(runs) == [0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model.n_layer": 1}, "model.n_layer: runs that are trained as one network can't differ in it, only in"),
        ({"training.steps": 10}, "training.steps: "),
        ({"eval.every": 7}, "eval.every: "),
        ({"hardware.precision": "bf16"}, "hardware.precision: "),
    ],
    ids=str,
)
def test_runs_that_differ_in_more_are_refused(config: Build, changes: dict[str, object], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        train_fused([config(), config(**{"training.seed": 2} | changes)])
    assert not Path(config().runs_dir).exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hardware.devices": 2}, "hardware.devices=2: is not supported for runs that are trained as one network"),
        ({"hardware.compile": True}, "hardware.compile=true: is not .*; give hardware.compile=false"),
        ({"hardware.fp8": True}, "hardware.fp8"),
    ],
    ids=str,
)
def test_what_cant_be_fused_is_refused(config: Build, changes: dict[str, object], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        train_fused([config(**changes), config(**{"training.seed": 2} | changes)])
    assert not Path(config().runs_dir).exists()
