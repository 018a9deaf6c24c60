"""`nanogpt sizing`: nanoGPT's notebook as tables, devices, costs; and the door of the room."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.sweep_request import points
from experiments.sizing import size
from nanogpt.config import SizingConfig
from nanogpt.estimates.gpu_specs import DEVICES
from nanogpt.estimates.memory import training_memory

ROOT = Path(__file__).parents[2]
NOTEBOOK = ["model=gpt2", "model.bias=false", "model.vocab_multiple=1"]


def sized(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    (config,) = points("sizing", SizingConfig, list(words))
    assert size(config) == 0
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
    (config,) = points("sizing", SizingConfig, ["model=gpt2_xl"])
    model, text = config.model.with_vocab(50_257), sized(capsys, "model=gpt2_xl")
    for name, device in DEVICES.items():
        row = next(line for line in text.splitlines() if f" {name} " in line)
        if "doesn't fit" in row:
            assert training_memory(model, device.precision, 1, gpu=True).total > 0.9 * device.memory
        else:
            largest = int(re.findall(r"up to (\d+)", row)[0])
            assert training_memory(model, device.precision, largest, gpu=True).total <= 0.9 * device.memory
            larger = min((n for n in range(largest + 1, 481) if 480 % n == 0), default=10**6)
            assert training_memory(model, device.precision, larger, gpu=True).total > 0.9 * device.memory


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


def command(*words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    code = f"""
import runpy, sys
sys.argv = ['experiments', *{list(words)!r}]
sys.path.insert(0, {str(ROOT)!r})
try:
    runpy.run_module('experiments', run_name='__main__')
finally:
    print('LOADED', sorted({{'torch', 'scipy', 'matplotlib'}} & set(sys.modules)), file=sys.stderr)
"""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "code"),
    [
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
    ],
    ids=str,
)
def test_questions_are_answered_without_torch(words: list[str], code: int, tmp_path: Path) -> None:
    done = command(*words, folder=tmp_path)
    told, _, loaded = done.stderr.partition("LOADED ")
    assert (done.returncode, ast.literal_eval(loaded.strip())) == (code, [])
    assert told.count("\n") == (1 if code else 0)
    assert not list(tmp_path.iterdir()), "asking creates nothing"


def test_an_unknown_command_names_the_nearest(tmp_path: Path) -> None:
    told = command("scalling", folder=tmp_path).stderr
    assert told.startswith("error: scalling: no such command; allowed: one of report, compare, list")
    assert told.splitlines()[0].endswith("did you mean 'scaling'?")


def test_a_fit_needs_no_torch_either(tmp_path: Path) -> None:
    done = command("scaling", "runs=nothing*", folder=tmp_path)
    assert done.returncode == 2 and "torch" not in done.stderr and "runs=nothing*: no run directory" in done.stderr
