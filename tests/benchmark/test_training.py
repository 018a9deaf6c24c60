"""bench.py measures a step and prints a table that can be kept."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.benchmark.clock import spread
from nanogpt.benchmark.report import bench
from nanogpt.config import BenchConfig, BenchSettings, TrainConfig


def test_the_table(config: Callable[..., TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "benchmarks.md"
    settings = BenchSettings(warmup=1, steps=2, startup=False, out=str(out))
    built = BenchConfig(**dict(config()), bench=settings)
    assert bench(built) == 0
    text = out.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    for row in ("step of 128 tokens (1 x 8 x 16)", "tokens a second", "loading a micro-batch", "peak memory"):
        assert f"| {row}" in text
    assert "torch" in text and "MFU" not in text, "no MFU for a device whose peak isn't known"
    assert not (tmp_path / "runs").exists()


def test_spread() -> None:
    assert spread([0.001, 0.003, 0.002]) == "2 ms (1 to 3, n=3)"
