"""Whole trainings through train.py on the null GPU: they compile, fit and end; what they learn is no number at all."""

import json
import re
from pathlib import Path

import pytest

from tests.null_gpu.conftest import RTX_4090, Train
from tests.null_gpu.matrix import SHORT, Choices, cover_pairs, name_of, overrides

pytestmark = [pytest.mark.null_gpu, pytest.mark.timeout(3600)]
TINY = ("model=tiny", "hardware=gpu", "hardware.micro_batch_size=6", "training.steps=8", "training.batch_tokens=1536")
SCHEDULE = ("schedule.warmup_steps=2", "eval.every=4", "eval.tokens=2048", "checkpoint.every=4")


@pytest.mark.parametrize("choices", SHORT, ids=name_of)
def test_short(train: Train, choices: Choices) -> None:
    check_training(train, choices)


@pytest.mark.parametrize("choices", cover_pairs(), ids=name_of)
def test_each_pair_of_choices(train: Train, choices: Choices) -> None:
    if choices["precision"] == "fp8":
        pytest.importorskip("torchao")
    check_training(train, choices)


def check_training(train: Train, choices: Choices) -> None:
    """Train to the middle, stop, and continue to the end: both compile, save and restore."""
    words = dict(word.split("=") for word in [*TINY, *SCHEDULE, *overrides(choices)])
    for stop in (["stop_at_fraction=0.5"], []):
        done = train(*(f"{key}={value}" for key, value in words.items()), *stop, NULL_GPU_COUNT="2")
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("paused at step 4" in done.stdout) == bool(stop)
        assert "skipping cudagraphs" not in done.stderr


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_kernels_compile_for_each_capability(train: Train, tmp_path: Path, capability: str) -> None:
    words = [*TINY, *SCHEDULE, "hardware.compile=true", "model.dropout=0.1", "optimizer=muon"]
    done = train(*words, NULL_GPU_CAPABILITY=capability, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "kernels"))
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [path for path in (tmp_path / "kernels").rglob("*.json") if path.with_suffix(".cubin").exists()]
    assert kernels and {json.loads(path.read_text())["target"]["arch"] for path in kernels} == {int(capability)}


def test_the_experiment_of_readme(train: Train, shakespeare: Path) -> None:
    data = ["data=shakespeare_char", f"data.source={shakespeare}", "data.tokenizer=char"]
    short = ["training.steps=4", "eval.every=2", "eval.tokens=16384", "schedule.warmup_steps=2"]
    done = train("experiment=shakespeare_char", "hardware=gpu", *data, *short)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_found_micro_batch_fits_when_compiled(train: Train) -> None:
    words = ["model=gpt2", "model.vocab_size=50304", "hardware=gpu", "hardware.micro_batch_size=auto"]
    short = ["training.steps=2", "training.batch_tokens=491520", "eval.tokens=16384", "schedule.warmup_steps=1"]
    done = train(*words, *short, NULL_GPU_MEMORY="23.6", **RTX_4090)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"micro-batch", done.stdout)


def test_the_reason_of_nccl_reaches_the_user(train: Train) -> None:
    done = train(*TINY, *SCHEDULE, "hardware.devices=2", NULL_GPU_COUNT="2", NULL_GPU_NCCL_FAILS="1")
    assert done.returncode == 5, done.stderr[-3000:]
    assert "Duplicate GPU" in done.stderr or "invalid usage" in done.stderr
