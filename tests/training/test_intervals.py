"""A run that is shorter than the usual interval is evaluated all the same, and one that began before keeps its rows."""

import json
from collections.abc import Callable

import pytest

from cli.sweep_request import read_configs
from nanogpt.config import EvalConfig, TrainConfig
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import locate_run
from nanogpt.schema import signature
from nanogpt.training.run import train

Build = Callable[..., TrainConfig]


def evaluated(config: TrainConfig) -> list[float]:
    return [row["step"] for row in read_rows(locate_run(config) / "metrics.jsonl") if "val_loss" in row]


def test_a_short_run_is_evaluated_four_times() -> None:
    fits, typed = EvalConfig(every=1000, fit=True), EvalConfig(every=1000)
    assert [step for step in range(61) if fits.is_due(step, 60)] == [0, 15, 30, 45, 60]
    assert [step for step in range(61) if typed.is_due(step, 60)] == [0, 60]
    assert fits.interval(1000) == 1000 and fits.interval(3) == 1


def test_an_interval_that_is_typed_is_kept() -> None:
    short, typed = (
        read_configs("train", TrainConfig, ["training.steps=60", *more])[0] for more in ([], ["eval.every=1000"])
    )
    assert short.eval.fit and not typed.eval.fit
    assert signature(typed) == signature(short.model_copy(update={"eval": typed.eval}))


def test_a_run_that_began_before_keeps_its_evaluations(config: Build) -> None:
    """Its config.json has no eval.fit; the same command has it."""
    before = config(**{"eval.every": 100, "stop_at_fraction": 0.5})
    assert train(before) == 0
    stored = locate_run(before) / "config.json"
    values = json.loads(stored.read_text())
    del values["eval"]["fit"]
    stored.write_text(json.dumps(values))
    assert train(config(**{"eval.every": 100, "eval.fit": True})) == 0
    assert evaluated(before) == [0, 10, 20], "the first, where it paused, and the last"


def test_the_plan_says_so(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    built = config(**{"eval.every": 100, "eval.fit": True})
    assert train(built) == 0
    assert evaluated(built) == [0, 5, 10, 15, 20]
    assert "5 times, every 5 steps, as the run is shorter than eval.every=100" in capsys.readouterr().out
