"""The floors of a step: from data sheets where the device is known, measured where it isn't."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from nanogpt.benchmark import roofline as module
from nanogpt.benchmark.measurement import with_vocabulary
from nanogpt.benchmark.roofline import (
    Floors,
    compute_floors,
    find_memory_peak,
    find_products_peak,
    measure_bandwidth,
    measure_flops,
)
from nanogpt.config import BenchConfig, Precision, TrainConfig
from nanogpt.device import Compute

Build = Callable[..., TrainConfig]
CPU = Compute(torch.device("cpu"), "fp32", "Some CPU")


def build(config: Build, **changes: object) -> BenchConfig:
    return with_vocabulary(BenchConfig(**dict(config(**changes))), 50_304)


def test_gpt2_on_an_h200_by_hand(config: Build) -> None:
    """124 M parameters: 6 N + 12 L C T operations a token, at 989.4 TFLOP/s; 30 micro-batches of 16 windows."""
    shape: dict[str, object] = {"model.n_layer": 12, "model.n_head": 12, "model.n_embd": 768, "model.block_size": 1024}
    shape |= {"model.bias": True, "model.dropout": 0.0, "training.batch_tokens": 491_520}
    found = compute_floors(build(config, **shape), replace(CPU, precision="bf16", name="NVIDIA H200"))
    n_params = 124_475_904 - 1024 * 768
    flops = 491_520 * (6 * n_params + 12 * 12 * 768 * 1024)
    assert found.products == pytest.approx(flops / 989.4e12)
    assert found.memory == pytest.approx(0.12, rel=0.01)
    assert "420TFLOP at 989TFLOP/s (data sheet)" in found.names[0] and "4.8TB/s (data sheet)" in found.names[1]
    assert "logits 198GB" in found.parts  # 2 bytes four times for 491,520 tokens of 50,304 ids


def test_rows_say_how_far_above_the_floors_steps_are() -> None:
    found = Floors(products=0.1, memory=0.05, names=("products", "memory", "parts"), parts="weights 1GB")
    assert found.rows(0.2) == [
        ("products", "100 ms; the step takes 2 x"),
        ("memory", "50 ms; the step takes 4 x"),
        ("parts", "weights 1GB"),
    ]
    ours, theirs = found.rows(0.2, 0.25)[0][1:]
    assert ours.endswith(" 2 x") and theirs.endswith(" 2.5 x")
    assert [row[2] for row in found.rows(0.2, 0.25)[1:]] == ["", ""], "a rival's memory is its own affair"


@pytest.mark.parametrize(
    ("name", "precision", "products", "memory"),
    [
        ("NVIDIA L4", "bf16", "data sheet", "data sheet"),
        ("NVIDIA L4", "fp32", "measured here", "data sheet"),
        ("Some CPU", "bf16", "measured here", "measured here"),
    ],
)
def test_what_no_data_sheet_says_is_measured(name: str, precision: Precision, products: str, memory: str) -> None:
    compute = replace(CPU, precision=precision, name=name)
    found = find_products_peak(compute), find_memory_peak(compute)
    assert [peak.source for peak in found] == [products, memory]
    assert all(peak.rate > 0 for peak in found)


def test_measured_peaks_count_what_the_fastest_try_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks 1 ms a call: 2 * 128^3 operations, and 4 MiB read and written, in that time."""
    monkeypatch.setattr(module, "time_call", lambda work: (work(), 1e-3)[1])  # pyright: ignore[reportUnknownLambdaType]
    assert measure_flops(CPU) == pytest.approx(2 * 128**3 / 1e-3)
    assert measure_bandwidth(CPU) == pytest.approx(2 * 2**22 / 1e-3)


def test_a_slow_product_is_not_tried_any_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time_call", lambda _: 1.0)  # pyright: ignore[reportUnknownLambdaType]
    assert measure_flops(CPU) == 2 * 64**3


def test_floors_do_not_depend_on_how_a_step_is_cut_but_for_weights_and_gradients(config: Build) -> None:
    """More micro-batches read weights and add gradients more often, and compute the same."""
    few, many = (
        compute_floors(
            build(config, **{"hardware.micro_batch_size": size}), replace(CPU, precision="bf16", name="NVIDIA L4")
        )
        for size in (8, 2)
    )
    assert many.products == few.products and many.memory > few.memory
    kinds = [dict(re.findall(r"(\w+) ([\d.]+\w+)", found.parts)) for found in (few, many)]
    assert {name for name in kinds[0] if kinds[0][name] != kinds[1][name]} <= {"weights", "gradients", "activations"}
    assert kinds[0]["logits"] == kinds[1]["logits"] and kinds[0]["optimizer"] == kinds[1]["optimizer"]
