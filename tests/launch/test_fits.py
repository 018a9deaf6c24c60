"""The memory line of a preview: bytes per GPU, whether they fit, and what would fit."""

import re
from pathlib import Path

import pytest

from launch.study import PlannedRun
from nanogpt.config import Precision
from nanogpt.estimates.memory import estimate_training_memory
from nanogpt.formatting import format_count
from tests.launch.previews import forecast, line_of, point


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine of the tests has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def gpt2(folder: Path, **changes: object) -> PlannedRun:
    """GPT-2 small on one GPU, on bytes: 85.1 M parameters in its blocks."""
    shape = {"model.n_layer": 12, "model.n_head": 12, "model.n_embd": 768, "model.block_size": 1024}
    work = {"model.dropout": 0.0, "training.batch_tokens": 480 * 1024, "hardware.device": "cuda"}
    return point(folder, **shape | work | changes)


def needs(planned: PlannedRun, precision: Precision, micro: int) -> int:
    return estimate_training_memory(planned.config.model.with_vocab(256), precision, micro, gpu=True).total


def test_what_fits_onto_a_gpu(tmp_path: Path) -> None:
    small, large = gpt2(tmp_path), gpt2(tmp_path, **{"model.n_layer": 24})
    low, high = (f"{format_count(needs(one, 'bf16', 16), 'G')}B" for one in (small, large))
    line = line_of(forecast([small, large], "h100", 1), "memory")
    assert line == f"memory  about {low} to {high} of the 80GB of h100; fits"
    many = gpt2(tmp_path, **{"hardware.devices": 2})
    assert f"{low} per GPU of the 80GB" in line_of(forecast([many], "h100", 1), "memory")
    whole = gpt2(tmp_path, **{"hardware.micro_batch_size": "auto"})
    found = max(n for n in range(1, 65) if 480 % n == 0 and needs(whole, "bf16", n) <= 0.9 * 80e9)  # 65,536 tokens
    assert found > 16
    assert f"about {format_count(needs(whole, 'bf16', found), 'G')}B of" in line_of(
        forecast([whole], "h100", 1), "memory"
    )
    line = line_of(forecast([small], None, 1), "memory")
    assert line == f"memory  about {low}; the kind of GPU isn't known, so neither is whether it fits"


def test_what_does_not_fit_and_what_would(tmp_path: Path) -> None:
    depths = (12, 36, 48)
    planned_runs = [gpt2(tmp_path, **{"model.n_layer": n, "hardware.micro_batch_size": 48}) for n in depths]
    line = line_of(forecast(planned_runs, "a100_40gb", 1), "memory")
    low, high = (f"{format_count(needs(one, 'bf16', 48), 'G')}B" for one in planned_runs[1:])
    assert line.startswith(
        f"memory  2 of 3 points need about {low} to {high}, more than 90% of the 40GB of a100_40gb: "
    )
    assert line.endswith(f"(largest: {planned_runs[2].path.name})")
    micro = int(re.findall(r"try hardware\.micro_batch_size=(\d+)", line)[0])
    larger = min(n for n in range(micro + 1, 481) if 480 % n == 0)
    assert needs(planned_runs[2], "bf16", micro) <= 0.9 * 40e9 < needs(planned_runs[2], "bf16", larger)
    tried = [gpt2(tmp_path, **{"model.n_layer": n, "hardware.micro_batch_size": micro}) for n in depths]
    assert line_of(forecast(tried, "a100_40gb", 1), "memory").endswith("; fits")
    huge = gpt2(tmp_path, **{"model.n_layer": 400})  # 16 bytes for each of 2.8 G parameters
    assert 0.9 * 40e9 < 16 * 400 * 12 * 768**2 < needs(huge, "bf16", 1) < 0.9 * 80e9
    line = line_of(forecast([huge], "a100_40gb", 1), "memory")
    assert "memory  the point needs about" in line
    assert "not even hardware.micro_batch_size=1 fits; h100, 80GB, would do" in line.replace("a100_80gb", "h100")
