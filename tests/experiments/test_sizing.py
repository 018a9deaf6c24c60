"""`nanogpt sizing`: nanoGPT's notebook as tables, devices, costs."""

import re
from pathlib import Path

import pytest

from cli.sweep_request import read_configs
from experiments.sizing import print_sizing
from nanogpt.config import SizingConfig
from nanogpt.estimates.gpu_specs import GPU_SPECS
from nanogpt.estimates.memory import estimate_training_memory
from tests.commands import ask_all

NOTEBOOK = ["model=gpt2", "model.bias=false", "model.vocab_multiple=1"]


def sized(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    (config,) = read_configs("sizing", SizingConfig, list(words))
    assert print_sizing(config) == 0
    return capsys.readouterr().out


def test_nanogpts_transformer_sizing(capsys: pytest.CaptureFixture[str]) -> None:
    text = sized(capsys, *NOTEBOOK)
    for expected in ("124,337,664", "291,648,307,200", "874,944,921,600", "875,062,886,400", "1.0001", "1.49GB"):
        assert expected in text


def test_nanogpts_training_time(capsys: pytest.CaptureFixture[str]) -> None:
    """300 B tokens at 30 % of 8 A100s: 3.46 days by 6 N D with N of all parameters; ours counts the attention too."""
    words = ["training.tokens=300000000000", "sizing.mfu=0.3", "sizing.gpu=a100_40gb", "hardware.devices=8"]
    text = sized(capsys, *NOTEBOOK, *words)
    days, hours = (int(part) for part in re.findall(r"(\d+)d(\d+)h", text)[0])
    counted = 875_062_886_400 / 1024 / (6 * 124_337_664)
    assert days + hours / 24 == pytest.approx(3.46 * counted, abs=0.05)


def test_costs_need_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["training.tokens=1000000000", "sizing.mfu=0.5", "sizing.gpu=h100"]
    assert "$" not in sized(capsys, *NOTEBOOK, *words)
    hours = 1e9 * 875_062_886_400 / 1024 / (0.5 * 989.4e12) / 3600
    assert f"${hours * 3:,.2f}" in sized(capsys, *NOTEBOOK, *words, "sizing.price=3")


def test_what_fits_is_what_the_estimate_says(capsys: pytest.CaptureFixture[str]) -> None:
    (config,) = read_configs("sizing", SizingConfig, ["model=gpt2_xl"])
    model, text = config.model.with_vocab(50_257), sized(capsys, "model=gpt2_xl")
    for name, device in GPU_SPECS.items():
        row = next(line for line in text.splitlines() if f" {name} " in line)
        if "doesn't fit" in row:
            assert estimate_training_memory(model, device.precision, 1, gpu=True).total > 0.9 * device.memory
        else:
            largest = int(re.findall(r"up to (\d+)", row)[0])
            assert estimate_training_memory(model, device.precision, largest, gpu=True).total <= 0.9 * device.memory
            larger = min((n for n in range(largest + 1, 481) if 480 % n == 0), default=10**6)
            assert estimate_training_memory(model, device.precision, larger, gpu=True).total > 0.9 * device.memory


def test_a_precision_a_gpu_hasn_t(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no peak for bf16" in sized(capsys, "hardware.precision=bf16", "sizing.gpu=t4")
    assert "no peak for fp32" in sized(capsys, "hardware.precision=fp32", "sizing.gpu=h100")


def test_data_that_isn_t_prepared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "a vocabulary of 256 is assumed" in sized(capsys, "model=tiny", "data=pystdlib")
    assert "assumed until" not in sized(capsys, "model=tiny")
    assert not list(tmp_path.iterdir())


QUESTIONS: list[tuple[list[str], int]] = [
    ([], 0),
    (["--help"], 0),
    (["sizing"], 0),
    (["sizing", "--help", "sizing"], 0),
    (["sizing", "--cfg", "job"], 0),
    (["sizing", "--info", "defaults"], 0),
    (["scaling", "budget=1e19"], 0),
    (["scaling", "--help"], 0),
    (["sizin"], 2),
    (["sizing", "modle=gpt2"], 2),
]


def test_questions_are_answered_without_torch(tmp_path: Path) -> None:
    """Nor SciPy and Matplotlib. All in one process, since one for each would take ten seconds."""
    done = ask_all("cli", [words for words, _ in QUESTIONS], tmp_path)
    for (words, code), (found, told, loaded) in zip(QUESTIONS, done, strict=True):
        assert (found, loaded) == (code, []), words
        assert told.count("\n") == (1 if code else 0), words
    assert not list(tmp_path.iterdir()), "asking creates nothing"


def test_an_unknown_command_names_the_nearest_and_a_fit_needs_no_torch(tmp_path: Path) -> None:
    unknown, fit = ask_all("cli", [["scalling"], ["scaling", "runs=nothing*"]], tmp_path)
    assert unknown[1].startswith("error: scalling: no such command; allowed: one of train, prepare, sample")
    assert unknown[1].splitlines()[0].endswith("did you mean 'scaling'?")
    assert fit[0] == 2 and "torch" not in fit[2] and "runs=nothing*: no run directory" in fit[1]
