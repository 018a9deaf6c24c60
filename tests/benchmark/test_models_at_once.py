"""Several models trained at once: the same steps as with sweep.fused, and one table of all ways."""

import re
from collections.abc import Callable

import pytest

from nanogpt.benchmark import models_at_once
from nanogpt.benchmark.measurement import OURS, Timing, Workload
from nanogpt.benchmark.models_at_once import compare_ways, measure_way
from nanogpt.benchmark.report import bench
from nanogpt.benchmark.worker import run_workload
from nanogpt.config import BenchConfig, BenchSettings, TrainConfig
from nanogpt.device import set_up_device

Build = Callable[..., TrainConfig]


def build(config: Build, rounds: int = 2) -> BenchConfig:
    settings = BenchSettings(warmup=1, steps=2, rounds=rounds, what=("models",), models=3)
    return BenchConfig(**dict(config(**{"model.vocab_size": 65})), bench=settings)


def run(workload: Workload) -> Timing:
    return Timing.model_validate_json(run_workload(workload.model_dump_json()))


def test_the_models_of_a_network(config: Build) -> None:
    """They have the parameters of as many models, and steps are timed for as long as is asked for."""
    built = build(config)
    alone = Workload(program=OURS, what="training", batch=built.micro_batch_size(), config=built)
    one, three = run(alone), run(alone.model_copy(update={"what": "models", "models": 3, "least_s": 0.3}))
    assert three.parameters == 3 * one.parameters and len(one.seconds) == 2
    assert len(three.seconds) > 2 and sum(three.seconds) >= 0.3 > sum(three.seconds[:-1])


def test_the_table(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time per model and step: of a network by its number of models, of processes by their number."""
    built, asked = build(config), list[tuple[Workload, int]]()

    def measure_at_once(workload: Workload, copies: int) -> list[Timing]:
        asked.append((workload, copies))
        return [Timing(seconds=(0.3, 0.6, 0.9), first=1.0, memory=1, parameters=1)] * copies

    monkeypatch.setattr(models_at_once, "measure_at_once", measure_at_once)
    monkeypatch.setattr(models_at_once, "measure", lambda workload: measure_at_once(workload, 1)[0])
    monkeypatch.setattr(models_at_once, "share_cores", lambda ranks: 2)
    table = compare_ways(built, set_up_device(built.hardware))
    assert table.columns[1:] == ("one after the other", "3 as one network", "2 processes at once")
    assert [cell.split()[0] for cell in table.rows[0][1:]] == ["600", "200", "300"]
    assert [cell.split()[0] for cell in table.rows[1][1:]] == ["1", "3", "2"]
    assert [(workload.models, copies) for workload, copies in asked] == [(1, 1), (3, 1), (1, 2)] * 2
    assert asked[2][0].config.hardware.threads == 1 and asked[0][0].config.hardware == built.hardware


@pytest.mark.slow
def test_real_processes(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    built = build(config, rounds=1)
    assert bench(built) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\| training 3 models, .* tokens \| one after the other \| 3 as one network \|", shown)
    found = measure_way(built, "processes", 2, least_s=0.1)
    assert 0 < found.step_s < found.start_s and found.total(10) == found.start_s + 10 * found.step_s
