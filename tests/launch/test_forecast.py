"""Time and memory lines of a preview: measured, by formula, or unknown."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import forecast as estimates
from launch import forecast_memory, speeds
from launch.study import PlannedRun
from nanogpt.config import Gpu, TrainConfig
from nanogpt.estimates.memory import estimate_training_memory
from nanogpt.formatting import format_count, format_duration
from nanogpt.run_directory import locate_run
from nanogpt.training.run import train
from tests.experiments.fake_runs import made_config, write_run
from tests.launch.previews import arithmetic, forecast, line_of, made, point
from tests.tiny_config import tiny_config

ROOT = Path(__file__).parents[2]
BATCH = 128  # tokens of a step of the tiny config
Build = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine of the tests has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def flops(C: int, L: int = 2, T: int = 16, V: int = 256) -> float:
    """Return 6 N + 12 L C T of the tiny model: N of tied embeddings, L blocks with biases, norms, without positions."""
    block = (3 * C * C + 3 * C) + (C * C + C) + (4 * C * C + 4 * C) + (4 * C * C + C) + 4 * C
    return 6 * (V * C + L * block + 2 * C) + 12 * L * C * T


def test_the_speed_of_a_real_training_is_that_of_its_siblings(tmp_path: Path, config: Build) -> None:
    study = tmp_path / "runs" / "study"
    trained = config(runs_dir=str(study))
    assert train(trained) == 0
    text = (locate_run(trained) / "timing.jsonl").read_text()
    rows = [json.loads(row) for row in text.splitlines()][1:]  # of two steps each
    rate = len(rows) * 2 * BATCH / sum(2 * BATCH / row["tokens_per_second"] for row in rows)
    siblings = [config(**{"runs_dir": str(study), "optimizer.lr": lr, "training.steps": 30_000}) for lr in (1e-3, 3e-4)]
    planned_runs = [PlannedRun(locate_run(one), one) for one in siblings]
    line = line_of(forecast(planned_runs, None, 1), "time")
    each = 30_000 * BATCH / rate
    assert (
        f"about {format_duration(each)} of training for one point, {format_duration(2 * each)} for the 2 that are left"
        in line
    )
    assert line.endswith(f"one after the other (from {format_count(rate)} tok/s, measured in {locate_run(trained)})")
    (planned_runs[0].path / "checkpoints" / "step-00020000").mkdir(parents=True)
    assert f"about {format_duration(each / 3)} to {format_duration(each)}" in line_of(
        forecast(planned_runs, None, 1), "time"
    )
    assert f"about {format_duration(each / 3)} of training (from" in line_of(
        forecast(planned_runs[:1], None, 1), "time"
    )


def test_speeds_of_runs_outside_of_the_study_come_second(tmp_path: Path) -> None:
    new = point(tmp_path / "study", **{"training.steps": 1000})
    assert "not known: no earlier run is comparable; nanogpt train dry_run=true" in line_of(
        forecast([new], None, 1), "time"
    )
    other = made(tmp_path / "other", 500.0)
    alone = made(tmp_path, 250.0, name="alone")
    os.utime(alone, (0, 0))
    assert "not known" in line_of(forecast([new], None, 1), "time"), "without a folder to look in"
    line = line_of(forecast([new], None, 1, tmp_path), "time")
    assert "about 4m16s of training" in line and f"500 tok/s, measured in {other}" in line
    inside = made(tmp_path / "study", 2000.0)
    os.utime(inside, (0, 0))
    line = line_of(forecast([new], None, 1, tmp_path), "time")
    assert "about 1m04s of training" in line and f"2k tok/s, measured in {inside}" in line


def test_the_last_start_counts_without_its_first_row(tmp_path: Path) -> None:
    starts = [arithmetic(threads=7) | {"from_step": 0}, arithmetic() | {"from_step": 20}]
    write_run(tmp_path, [5.0] * 6, rates=[9000, 9000, 10, 1000, 3000], starts=starts)
    assert "from 1.5k tok/s, measured" in line_of(forecast([point(tmp_path)], None, 1), "time")
    write_run(tmp_path, [5.0] * 3, rates=[9000, 50], starts=[arithmetic(), arithmetic() | {"from_step": 10}], name="b")
    assert "from 50 tok/s, measured" in line_of(forecast([point(tmp_path)], None, 1), "time"), "its only row counts"


def test_of_another_model_the_speed_is_scaled(tmp_path: Path) -> None:
    run = made(tmp_path, 1000.0)
    far = made(tmp_path, 700.0, name="far", C=64)
    line = line_of(forecast([point(tmp_path, **{"model.n_embd": 24, "training.steps": 9000})], None, 1), "time")
    rate = 1000 * flops(16) / flops(24)
    assert (
        f"about {format_duration(9000 * BATCH / rate)} of training (from {format_count(rate)} tok/s, scaled by FLOPs"
        in line
    )
    assert f"measured in {run})" in line and str(far) not in line, "the nearer of two"
    assert flops(256) > 10 * flops(64)
    assert "not known" in line_of(forecast([point(tmp_path, **{"model.n_embd": 256})], None, 1), "time")


H100 = {"device": "cuda", "precision": "bf16", "threads": None, "compile": True}


@pytest.mark.parametrize(
    ("facts", "name", "asked", "gpu", "alike"),
    [
        ({}, "a CPU", {}, None, True),
        ({"threads": 2}, "a CPU", {}, None, False),
        ({"threads": 2}, "a CPU", {"hardware.threads": None}, None, True),
        ({"compile": True}, "a CPU", {}, None, False),
        ({"recompute": True}, "a CPU", {}, None, False),
        ({"recompute": True}, "a CPU", {"hardware.activation_checkpointing": True}, None, True),
        ({"precision": "bf16"}, "a CPU", {}, None, False),
        ({"ranks": 2}, "a CPU", {}, None, False),
        ({"ranks": 2, "micro_batch_size": 4}, "a CPU", {"hardware.devices": 2}, None, True),
        ({"micro_batch_size": 4}, "a CPU", {"hardware.micro_batch_size": "auto"}, None, True),
        (H100, "NVIDIA H100 80GB HBM3", {}, None, False),
        (H100, "NVIDIA H100 80GB HBM3", {}, "h100", False),  # hardware.device=cpu
        (H100, "NVIDIA H100 80GB HBM3", {"hardware.device": "auto"}, "h100", True),
        (H100, "NVIDIA H100 80GB HBM3", {"hardware.device": "cuda"}, "h100", True),
        (H100, "NVIDIA H100 80GB HBM3", {"hardware.device": "cuda"}, None, True),
        (H100, "NVIDIA H100 80GB HBM3", {"hardware.device": "cuda"}, "h200", False),
        (H100, "NVIDIA H100 80GB HBM3", {"hardware.device": "cuda", "hardware.precision": "fp32"}, "h100", False),
        (H100 | {"precision": "fp16"}, "Tesla T4", {"hardware.device": "cuda"}, "t4", True),
    ],
)  # fmt: skip
def test_only_the_same_use_of_the_same_device_counts(
    facts: dict[str, object], name: str, asked: dict[str, object], gpu: Gpu | None, alike: bool, tmp_path: Path
) -> None:
    made(tmp_path, start=arithmetic(**facts) | {"device": name})
    assert ("measured in" in line_of(forecast([point(tmp_path, **asked)], gpu, 1), "time")) == alike


def test_another_micro_batch_is_scaled_not_measured(tmp_path: Path) -> None:
    made(tmp_path, start=arithmetic(micro_batch_size=4))
    assert "from 1k tok/s, scaled by FLOPs" in line_of(forecast([point(tmp_path)], None, 1), "time")


def test_a_named_gpu_has_a_share_of_its_peak(tmp_path: Path) -> None:
    gpus = {"hardware.device": "cuda", "hardware.devices": 4, "training.tokens": BATCH * 10**9, "training.steps": None}
    rate = 4 * 0.4 * 989.4e12 / flops(16)
    line = line_of(forecast([point(tmp_path, **gpus)], "h100", 1), "time")
    time, speed = format_duration(BATCH * 1e9 / rate), format_count(rate)
    assert f"about {time} of training (from {speed} tok/s, 40% of h100's peak, assu" in line
    assert "not known" in line_of(forecast([point(tmp_path, **gpus)], None, 1), "time")
    for precision, gpu in (("fp32", "h100"), ("bf16", "v100_32gb")):
        asked = point(tmp_path, **gpus | {"hardware.precision": precision})
        assert "not known" in line_of(forecast([asked], gpu, 1), "time"), "no peak is known"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("at_once", "whole"),
    [
        (1, "1h04m for the 4 that are left, one after the other"),
        (2, "40m00s for the 4 that are left, 2 at once"),  # 8 + 24, 8 + 24 and 8 in either order
        (3, "32m00s for the 4 that are left, 3 at once"),
        (256, "24m00s for the 4 that are left, 4 at once"),
        (None, "1h04m for the 4 that are left if run one after the other"),
    ],
)
def test_the_whole_takes_as_long_as_its_slots(at_once: int | None, whole: str, tmp_path: Path) -> None:
    made(tmp_path, BATCH / 60)  # a step a minute
    steps = (8, 16, 16, 24)
    planned_runs = [point(tmp_path, **{"training.steps": n, "schedule.warmup_steps": 0}) for n in steps]
    line = line_of(forecast(planned_runs, None, at_once), "time")
    assert f"about 8m00s to 24m00s of training for one point, {whole} (from 2.13 tok/s, measured" in line


def test_points_of_which_less_is_known_are_told_apart(tmp_path: Path) -> None:
    made(tmp_path)
    widths = (16, 16, 24, 512)
    planned_runs = [point(tmp_path, **{"model.n_embd": n, "optimizer.lr": 1e-3 + i}) for i, n in enumerate(widths)]
    known, unknown = (line for line in forecast(planned_runs, None, 1) if line.startswith("time "))
    assert "for 3 of the 4 that are left" in known and "(2 from 1k tok/s, measured" in known and "; 1 from " in known
    assert unknown.startswith("time    not known for 1 of 4 points: ")


def test_points_on_cpus_share_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned_runs = [point(tmp_path, **{"model.n_embd": 256, "optimizer.lr": 1e-3 * n}) for n in range(1, 6)]
    one = estimate_training_memory(planned_runs[0].config.model.with_vocab(256), "fp32", 8).host_bytes()
    two = [point(tmp_path, **{"model.n_embd": 256, "hardware.devices": 2})]
    half = estimate_training_memory(planned_runs[0].config.model.with_vocab(256), "fp32", 4).host_bytes(2)
    there = {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": round(3.5 * one / 1000)}
    monkeypatch.setattr(os, "sysconf", there.__getitem__)
    size, machine = (
        f"about {format_count(one, 'G')}B",
        f"{format_count(1000 * there['SC_PHYS_PAGES'], 'G')}B of this machine",
    )
    assert line_of(forecast(planned_runs, None, 3), "memory") == f"memory  {size} of the {machine}; fits"
    crowded = line_of(forecast(planned_runs, None, 4), "memory")
    assert crowded.endswith(f"fits alone, but 4 at once need up to {format_count(4 * one, 'G')}B: "
                            "try hydra.launcher.array_parallelism=3")  # fmt: skip
    assert f"about {format_count(half, 'G')}B of" in line_of(forecast(two, None, 1), "memory"), "two ranks"
    away = line_of(forecast(planned_runs, None, 256, here=False), "memory")
    assert away == f"memory  {size}; the memory of the machines isn't known"
    there["SC_PHYS_PAGES"] = round(0.5 * one / 1000)
    assert "5 of 5 points need" in line_of(forecast(planned_runs, None, 1), "memory")


def test_an_automatic_device_is_a_gpu_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = point(tmp_path, **{"hardware.device": "auto"})
    assert "of this machine" in line_of(forecast([planned], None, 1), "memory")
    assert "of h100" in line_of(forecast([planned], "h100", 1), "memory")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "the kind of GPU isn't known" in line_of(forecast([planned], None, 1), "memory")
    assert "memory of the machines" in line_of(forecast([planned], None, 1, here=False), "memory")


def test_a_vocabulary_that_is_guessed_is_said_to_be(tmp_path: Path, corpus: Path) -> None:
    config = tiny_config(tmp_path, corpus)
    note = "note    a vocabulary of 256 is assumed until the data is prepared"
    assert forecast([PlannedRun(locate_run(config), config)], None, 1)[-1] == note
    sized = tiny_config(tmp_path, corpus, **{"model.vocab_size": 300})
    assert note not in forecast([PlannedRun(locate_run(sized), sized)], None, 1)
    assert note not in forecast([point(tmp_path)], None, 1)


def test_files_that_can_t_be_read_end_nothing(tmp_path: Path) -> None:
    good = made(tmp_path, 500.0)
    for i, (name, text) in enumerate(
        [
            ("config.json", "{"),
            ("config.json", '{"model": 1}'),
            ("provenance.json", "[{}]"),
            ("provenance.json", '[{"arithmetic": 1}]'),
            ("timing.jsonl", ""),
            ("timing.jsonl", '{"step": "x"}\n[1]\n\x00'),
            ("timing.jsonl", '{"step": 5, "tokens_per_second": NaN}\n'),
            ("timing.jsonl", '{"step": 5, "tokens_per_second": 0}\n'),
        ]
    ):
        (made(tmp_path, 9e9, name=f"bad{i}") / name).write_text(text)
    assert f"from 500 tok/s, measured in {good}" in line_of(forecast([point(tmp_path)], None, 1), "time")
    folder = tmp_path / "tokens"
    folder.mkdir()
    (folder / "train.bin").write_bytes(b"")
    (folder / "tokenizer.json").write_text("{")
    (line,) = forecast([point(tmp_path, **{"data.source": str(folder)})], None, 1)
    assert line.startswith("note    neither time nor memory can be predicted: ") and "tokenizer.json" in line
    assert forecast([], None, 1) == []


def test_a_thousand_points_are_one_piece_of_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast whatever the machine: few files are read, and each model is computed once."""
    for i in range(60):
        made(tmp_path / f"study{i % 3}", 1000.0 + i, name=f"run{i}")
    calls = {"read_speed": 0, "estimate_training_memory": 0, "expected_vocab_size": 0}

    def counted(module: object, name: str) -> None:
        real = getattr(module, name)

        def count(*arguments: object, **named: object) -> object:
            calls[name] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, count)

    counted(speeds, "read_speed")
    counted(forecast_memory, "estimate_training_memory")
    counted(estimates, "expected_vocab_size")
    forecast_memory.peak_memory.cache_clear()
    first = made_config(runs_dir=str(tmp_path / "new"))
    rates = [first.optimizer.model_copy(update={"lr": 1e-6 * n}) for n in range(1, 1001)]
    planned_runs = [
        PlannedRun(tmp_path / "new" / f"lr{i}", first.model_copy(update={"optimizer": o})) for i, o in enumerate(rates)
    ]
    lines = forecast(planned_runs, None, 1, tmp_path)
    assert "for the 1000 that are left" in line_of(lines, "time") and "fits" in line_of(lines, "memory")
    assert calls["read_speed"] == 50 and calls["expected_vocab_size"] == 1 and calls["estimate_training_memory"] <= 2


def test_without_torch(tmp_path: Path) -> None:
    run = made(tmp_path)
    code = f"""
import sys
from pathlib import Path
from launch.forecast import forecast
from launch.study import PlannedRun
from nanogpt.run_directory import RunDirectory
config = RunDirectory(Path({str(run)!r})).read_config()
print([*forecast([PlannedRun(Path({str(tmp_path / "new")!r}), config)], None, 1).lines(), 'torch' in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    time, cost, memory, loaded = ast.literal_eval(done.stdout)
    assert cost.startswith("cost    about ") and cost.endswith(" CPU-hours of training for what is left")
    assert "measured in" in time and "fits" in memory and loaded is False
