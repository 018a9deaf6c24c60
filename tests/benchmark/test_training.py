"""bench.py measures a step and prints a table that can be kept; profile=true says which kernels take the time."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanogpt.benchmark.report import bench
from nanogpt.benchmark.timing import Stopwatch, format_range, format_spread
from nanogpt.config import BenchConfig, BenchSettings, TrainConfig
from nanogpt.config.bench import What
from tests.conftest import ROOT

Build = Callable[..., TrainConfig]


def test_the_table(config: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "benchmarks.md"
    settings = BenchSettings(warmup=1, steps=2, startup=False, out=str(out))
    built = BenchConfig(**dict(config()), bench=settings)
    assert bench(built) == 0
    text = out.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    for row in ("step of 128 tokens (1 x 8 x 16)", "tokens a second", "loading a micro-batch", "peak memory"):
        assert f"| {row}" in text
    assert "torch" in text and "MFU" not in text, "no MFU for a device whose peak isn't known"
    floors = [line for line in text.splitlines() if line.startswith("| floor by ")]
    assert len(floors) == 2 and all("(measured here)" in line and "the step takes" in line for line in floors)
    assert not (tmp_path / "runs").exists()


def test_phases_make_up_the_step(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    built = BenchConfig(**dict(config()), bench=BenchSettings(warmup=1, steps=20, startup=False))
    bench(built)
    lines = [line for line in capsys.readouterr().out.splitlines() if "each phase waited for" in line]
    names = [line.split("for: ")[1].split(" ")[0] for line in lines]
    assert names == ["data", "forward", "backward", "clip", "optimizer", "rest"]
    shares = [float(line.split(", ")[-1].split(" %")[0]) for line in lines]
    assert min(shares) >= 0 and min(shares[1:3]) > 0 and abs(sum(shares) - 100) < 0.5


@pytest.mark.parametrize(
    "what", [("training",), pytest.param(("training", "generation"), marks=pytest.mark.slow)], ids=str
)
def test_a_profile_is_a_trace_with_phases_and_a_table(
    config: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: tuple[What, ...]
) -> None:
    settings = BenchSettings(what=what, warmup=1, steps=1, startup=False, rounds=1, new_tokens=4, batch_sizes=(2,))
    built = BenchConfig(**dict(config()), bench=settings, profile=True)
    assert bench(built) == 0
    output = capsys.readouterr().out
    assert "aten::" in output and ("generation-2: top kernels" in output) == ("generation" in what)
    training, *_ = traces = [next((tmp_path / "runs").glob(f"trace-*-{name[:5]}*.json")) for name in what]
    assert all(str(trace) in output for trace in traces)
    names = [event.get("name") for event in json.loads(training.read_text())["traceEvents"]]
    assert names.count("forward") == names.count("optimizer") == 3, "three steps were recorded, phases labelled"
    assert "aten::addmm" in names or "aten::mm" in names


def test_an_automatic_micro_batch_is_the_one_that_training_takes(
    config: Build, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for two sequences: the table names that size, and the steps use it."""
    monkeypatch.setattr("nanogpt.training.auto_batch_size.largest_micro_batch", lambda *_, **__: 2)  # pyright: ignore[reportUnknownLambdaType]
    settings = BenchSettings(warmup=1, steps=1, startup=False)
    bench(BenchConfig(**dict(config(**{"hardware.micro_batch_size": "auto"})), bench=settings))
    assert "step of 128 tokens (4 x 2 x 16)" in capsys.readouterr().out


def test_spread() -> None:
    assert format_spread([0.001, 0.003, 0.002]) == "2 ms (1 to 3, n=3)"
    assert format_range([1234.5], " x") == "1,234 x"


def test_a_stopwatch_adds_up_and_waits() -> None:
    waits: list[float] = []
    watch = Stopwatch(lambda: waits.append(time.perf_counter()))
    for _ in range(2):
        with watch.phase("sleep"):
            time.sleep(0.02)
    assert watch.seconds["sleep"] >= 0.04 and len(waits) == 4


def test_memory_is_that_of_the_process_alone() -> None:
    """getrusage would tell what this one holds."""
    ballast = torch.ones(2**30 // 4)
    code = "from nanogpt.benchmark.timing import peak_resident; print(peak_resident())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 50e6 < int(done.stdout) < ballast.nbytes
