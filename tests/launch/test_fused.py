"""`sweep.fused`: the points of a study trained as one network, against the same study trained point by point."""

import time
from pathlib import Path

import pytest

from cli.sweep_request import read_sweep
from experiments.results import read_results
from launch import inline, resources
from launch.status import RunStatus, read_run
from launch.sweep import run_sweep
from nanogpt.benchmark import models_at_once
from nanogpt.config import BenchConfig, TrainConfig
from nanogpt.errors import BadInput
from nanogpt.metrics_file import read_rows
from nanogpt.training import fused_step
from nanogpt.training.run import train
from tests.launch.jobs import Lab
from tests.training.test_fused import poison

QUICK: dict[str, object] = {"training.steps": 6, "eval.every": 3, "tracking.sample_tokens": 0}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path)


def sweep(lab: Lab, name: str, *words: str) -> int:
    asked = lab.only(f"name={name}", *words, **QUICK)
    return run_sweep(read_sweep("train", TrainConfig, asked, multirun=True), train)


def statuses(lab: Lab, study: str) -> list[RunStatus]:
    return [read_run(path.parent) for path in sorted(lab.study(study).glob("*/config.json"))]


def test_a_fused_study_is_the_study(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run directories with the same rows; points that differ in more are in groups of their own."""
    sizes: list[int] = []
    real = fused_step.FusedStep.stack

    def stack(self: fused_step.FusedStep, loops: list[object]) -> None:
        sizes.append(len(loops))
        real(self, loops)  # type: ignore[arg-type]

    monkeypatch.setattr(fused_step.FusedStep, "stack", stack)
    points = ("model.n_layer=1,2", "training.seed=1,2,3", "optimizer.lr=1e-3")
    assert sweep(lab, "plain", *points) == 0 and not sizes
    capsys.readouterr()
    began = time.monotonic()
    assert sweep(lab, "fused", *points, "sweep.fused=2") == 0
    assert sizes == [2, 1, 2, 1]
    took = time.monotonic() - began
    out = capsys.readouterr().out
    assert "6 points, 6 to run" in out and "=== point 6 of 6" in out and "6 finished" in out
    results, plain = (read_results(statuses(lab, name))[0] for name in ("fused", "plain"))
    assert len(results) == 6 and all(result.complete and result.device_seconds for result in results)
    assert sum(result.cost.cpu_hours or 1.0 for result in results) <= took / 3600, "those of a network share its time"
    assert [result.path.name for result in results] == [result.path.name for result in plain]
    for ours, theirs in zip(results, plain, strict=True):
        for row, other in zip(*(read_rows(run.path / "metrics.jsonl") for run in (ours, theirs)), strict=True):
            assert row == pytest.approx(other, rel=1e-6)
    assert sweep(lab, "fused", *points, "sweep.fused=2") == 0
    assert "0 to run (6 finished)" in capsys.readouterr().out


def test_a_point_that_diverges(lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 2, 4)
    assert sweep(lab, "wild", "training.seed=1,2", "sweep.fused=2") == 6
    shown = capsys.readouterr()
    assert "1 diverged, 1 finished" in shown.out.replace("1 finished, 1 diverged", "1 diverged, 1 finished")
    assert "loss" in shown.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("optimizer.lr=1e-3,1e-2", "hydra/sweeper=asha", "sweep.fused=auto"), "sweep.fused=auto: not with .*=asha"),
        (("training.seed=1,2", "sweep.fused=autom"), "sweep.fused=autom: .*; did you mean 'auto'"),
        (("training.seed=1,2", "sweep.fused=1"), "sweep.fused=1: "),
        (("model.n_layer=1,2",), "sweep.fused=2: no two points differ in optimizer, schedule, .* alone"),
        (("training.seed=1,2", "hydra/launcher=submitit_local"), "sweep.fused=2: .*leave out hydra/launcher"),
        (
            ("optimizer.lr=1e-3,1e-2", "hydra/sweeper=optuna"),
            "sweep.fused=2: one trial is trained at a time; give hydra.sweeper.at_once=2",
        ),
    ],
)
def test_what_is_refused(lab: Lab, words: tuple[str, ...], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        sweep(lab, "s", "sweep.fused=2", *words)
    assert not lab.study("s").exists()


def test_what_no_process_can_train_as_one_network(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(lab, "s", "training.seed=1,2", "hardware.devices=2", "sweep.fused=2") == 2
    assert "hardware.devices=2: is not supported for runs that are trained as one network" in capsys.readouterr().err


Seconds = dict[models_at_once.Way, float]


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: Seconds) -> list[tuple[str, int]]:
    """Replace the measurement of the ways. Return the list of what is measured, which grows."""
    asked: list[tuple[str, int]] = []

    def measure_way(_: BenchConfig, way: models_at_once.Way, count: int, least_s: float) -> models_at_once.WayTime:
        assert least_s > 0
        asked.append((way, count))
        return models_at_once.WayTime(seconds[way], 0.1 if way == "processes" else 0.0)

    monkeypatch.setattr(models_at_once, "measure_way", measure_way)
    monkeypatch.setattr(resources, "share_cores", lambda ranks: 2)
    return asked


@pytest.mark.parametrize(
    ("seconds", "shown", "fused"),
    [
        ({"alone": 0.5, "network": 0.1, "processes": 0.09}, "at once 0.64 s, 3 as one network 0.6 s; chosen: 3", [3]),
        ({"alone": 0.1, "network": 0.2, "processes": 0.2}, "as one network 1.2 s; chosen: one after the other", []),
        ({"alone": 2.0, "network": 0.0, "processes": 3.0}, "2 processes at once 18.1 s; chosen: one after", []),
    ],
)
def test_the_fastest_way(
    lab: Lab,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    seconds: Seconds,
    shown: str,
    fused: list[int],
) -> None:
    """It is measured once; where a step takes long, no network is tried."""
    asked, groups = pretend(monkeypatch, seconds), list[int]()
    real = inline.train_group
    monkeypatch.setattr(inline, "train_group", lambda group: groups.append(len(group)) or real(group))
    assert sweep(lab, "auto", "training.seed=1,2,3", "sweep.fused=auto") == 0
    assert shown in capsys.readouterr().out and groups == fused
    ways = [("alone", 1), ("processes", 2)] + [("network", 3)] * (seconds["alone"] < 1)
    assert asked == ways
    assert sweep(lab, "auto", "training.seed=1,2,3,4", "sweep.fused=auto") == 0 and asked == ways


@pytest.mark.slow
def test_processes_may_be_fastest(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"alone": 0.5, "network": 0.4, "processes": 0.1})
    assert sweep(lab, "auto", "training.seed=1,2,3", "sweep.fused=auto") == 0
    found = statuses(lab, "auto")
    assert [status.state for status in found] == ["finished"] * 3 and (lab.study("auto") / ".launch").exists()


def test_a_plan_measures_nothing(lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, {})
    assert sweep(lab, "auto", "training.seed=1,2", "sweep.fused=auto", "dry_run=true") == 0
    assert "measured when the sweep starts" in capsys.readouterr().out and not asked
    assert not lab.study("auto").exists()


@pytest.mark.slow
def test_finalists_are_trained_together_too(lab: Lab) -> None:
    """Successive halving gives the same study, fused or not."""
    words = ("optimizer.lr=1e-4,1e-3,1e-2", "training.seed=1,2", "hydra/sweeper=halving", "hydra.sweeper.rungs=2")
    for name, fused in (("plain", ()), ("fused", ("sweep.fused=4",))):
        assert sweep(lab, name, *words, *fused) == 0
    plain, ours = ((lab.study(name) / "rungs.jsonl").read_text() for name in ("plain", "fused"))
    assert plain.count("\n") == ours.count("\n")
    steps = [
        sorted(
            (result.path.name, result.last["step"]) for result in read_results(statuses(lab, name))[0] if result.last
        )
        for name in ("plain", "fused")
    ]
    assert steps[0] == steps[1]
