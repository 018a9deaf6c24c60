"""The plan before a training: its numbers, what it may assume, and that it leaves nothing behind."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cli.config_files import choices
from cli.sweep_request import read_configs
from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.data.prepare import prepare_if_small
from nanogpt.device import Compute
from nanogpt.errors import BadEnvironment, BadInput
from nanogpt.estimates.plan import Machine, Plan, Rate, describe_absent_gpu
from nanogpt.model.gpt import GPT
from nanogpt.training.auto_batch_size import estimate_rate, measure_rate
from nanogpt.training.run import train
from tests.conftest import Run

Build = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]
MACHINE = Machine("cuda:0 (NVIDIA H100 80GB HBM3), bf16", True, "bf16", 80 * 10**9, Rate(4e14, "assumed"))
CPU = Compute(torch.device("cpu"), "fp32", "a processor")


def gpt2(**training: object) -> TrainConfig:
    """Return nanoGPT's GPT-2 run: 300 B tokens in steps of 491,520."""
    values = {"training": {"batch_tokens": 491_520, "steps": 600_000} | training, "model": {"bias": False}}
    return TrainConfig.model_validate(values | {"hardware": {"micro_batch_size": 12}})


def test_nanogpts_run() -> None:
    """transformer_sizing: 300 B tokens take 8 A100 at 30 % of 312 TFLOP/s 3.46 days. That is 6 N D alone, N without
    position embeddings; our count has the attention's square too.
    """
    config = gpt2(steps=None, tokens=300_000_000_000)
    machine = replace(MACHINE, rate=Rate(0.3 * 312e12, "assumed"))
    plan = Plan(config, config.model.with_vocab(50_257), 8, machine)
    attention = 12 * 12 * 768 * 1024
    share = 6 * 124_337_664 / (6 * (124_337_664 - 1024 * 768) + attention)
    assert plan.seconds / 86_400 * share == pytest.approx(3.46, abs=0.01)


def test_the_numbers_of_a_plan() -> None:
    plan = Plan(gpt2(), gpt2().model.with_vocab(50_257), 8, MACHINE)
    assert (plan.steps, plan.tokens) == (600_000, 294_912_000_000)
    assert plan.flops == 294_912_000_000 * 875_062_886_400 / 1024
    assert plan.seconds == plan.flops / 4e14 / 8
    text = "\n".join(plan.lines())
    for expected in (
        "124M parameters (token embedding 38.6M, position embedding 786k, attention 28.3M, mlp 56.6M, norms 19.2k)",
        "600,000 steps of 491,520 tokens = 295B tokens, 2.52e+20 FLOPs; 8 ranks, each 5 micro-batches of 12 x 1024",
        "of 80GB: weights, gradients, optimizer state 1.99GB",
        "and 1.49GB of the machine's memory for the copy that is saved; a checkpoint 1.49GB",
        "at 400TFLOP/s on each device, assumed",
        "cost    about 175 GPU-hours",
    ):
        assert expected in text
    assert len(plan.lines()) == 6 and all(line.isprintable() for line in plan.lines())


def test_a_horizon_in_flops() -> None:
    config = gpt2(steps=None, flops=1e19)
    plan = Plan(config, config.model.with_vocab(50_257), 1, MACHINE)
    assert plan.flops >= 1e19 > plan.flops - 491_520 * 875_062_886_400 / 1024


def test_ranks_on_a_cpu_share_its_memory() -> None:
    config = gpt2()
    machine = replace(MACHINE, gpu=False, memory=30 * 10**9)
    lines = [Plan(config, config.model.with_vocab(50_257), world, machine).lines()[3] for world in (1, 8)]
    assert "of 30GB" in lines[0] and "8 x " in lines[1] and "more than the 30GB available" in lines[1]


@pytest.mark.slow
def test_the_memory_of_a_plan_is_what_a_run_takes(tmp_path: Path) -> None:
    """The peak of a whole process that saves is within 15 % of what its plan says, for model=tiny on a CPU.

    It is read from /proc: getrusage's ru_maxrss would be the parent's, pytest's, where that is larger.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    words = ["model=tiny", "hardware=cpu", "training.steps=20", "eval.every=10", "checkpoint.every=10"]
    words += ["schedule.warmup_steps=2", f"runs_dir={tmp_path}/runs", f"data.dir={tmp_path}/data"]
    program = (
        "import runpy, sys; sys.argv = ['train.py', *sys.argv[1:]]\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "finally:\n"
        "    fields = [line.split() for line in open('/proc/self/status')]\n"
        "    print('peak', next(field[1] for field in fields if field[0] == 'VmHWM:'))"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    told = re.search(r"^memory  about ([\d.]+)MB", done.stdout, re.MULTILINE)
    peak = re.search(r"^peak (\d+)$", done.stdout, re.MULTILINE)
    assert told and peak, done.stdout
    assert float(told[1]) * 1e6 == pytest.approx(1024 * int(peak[1]), rel=0.15)


def test_a_known_peak_is_assumed_to_be_used_in_part_and_any_other_device_is_measured() -> None:
    model = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=50)
    known = estimate_rate(Compute(torch.device("cpu"), "bf16", "NVIDIA A100-SXM4-40GB"), model, 8)
    assert known.flops == pytest.approx(0.4 * 311.9e12) and known.how == "40% of its peak, assumed"
    other = estimate_rate(CPU, model, 8)
    assert 1e6 < other.flops < 1e14 and other.how == "measured here on 8 x 16 tokens, forward and backward"


def test_measuring_a_large_model_takes_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[ModelConfig] = []
    original = GPT.__init__

    def noted(self: GPT, config: ModelConfig, seed: int = 0) -> None:
        built.append(config)
        original(self, config, seed)

    monkeypatch.setattr(GPT, "__init__", noted)
    measure_rate(CPU, ModelConfig(vocab_size=256), 16)
    (part,) = built
    assert (part.n_layer, part.n_embd, part.block_size) == (1, 768, 128)


def test_plan_writes_nothing_and_guesses_only_what_it_says(
    config: Build, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = set(tmp_path.rglob("*"))
    assert train(config(dry_run=True)) == 0
    assumed = capsys.readouterr().out
    assert set(tmp_path.rglob("*")) == before
    assert "a vocabulary of 256 is assumed until the data is prepared" in assumed
    size = prepare_if_small(config().data).vocab_size
    assert train(config(dry_run=True)) == 0
    known = capsys.readouterr().out
    assert "assumed until" not in known and known != assumed
    model = GPT(config().model.with_vocab(size))
    assert f"{sum(p.numel() for p in model.parameters()) / 1000:.3g}k parameters" in known
    assert train(config(dry_run=True, **{"data.tokenizer": "byte", "data.dir": str(tmp_path / "none")})) == 0
    assert "assumed until" not in capsys.readouterr().out


def test_training_begins_with_the_plan(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config(**{"training.steps": 2})) == 0
    begun = capsys.readouterr().out.splitlines()[:7]
    assert train(config(dry_run=True, **{"training.steps": 2})) == 0
    planned = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in begun] == ["run", "data", "model", "plan", "device", "memory", "time"]
    assert begun[2:6] == planned[:4], "all but the measured time"


def test_a_plan_is_refused_like_the_training(config: Build) -> None:
    with pytest.raises(BadInput, match=r"schedule.warmup_steps=50: is above the run's length in steps"):
        train(config(dry_run=True, **{"training.steps": None, "training.flops": 1e8, "schedule.warmup_steps": 50}))


def test_one_block_for_several_ranks_and_for_a_study(run: Run) -> None:
    done = run("train.py", "dry_run=true", "hardware.devices=2", "hardware.device=cpu", "data.tokenizer=byte")
    assert done.returncode == 0 and done.stdout.count("plan    ") == 1 and "2 ranks, each 1 micro-batch" in done.stdout
    done = run("train.py", "-m", "dry_run=true", "model.n_embd=64,128", "hardware.threads=1")
    assert done.returncode == 0 and done.stdout.count("plan    ") == 1 and "2 points, 2 to run" in done.stdout


def test_a_gpu_that_is_not_here_is_planned_by_its_data_sheet(
    config: Build, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    hardware = {"hardware.device": "cuda", "hardware.gpu": "h100", "hardware.compile": True}
    wanted = config(**hardware, dry_run=True)
    assert train(wanted) == 0
    out = capsys.readouterr().out
    assert "device  h100, bf16; no CUDA device here" in out and "of 80GB" in out
    flops = Plan(wanted, wanted.model.with_vocab(256), 1, MACHINE).flops
    assert describe_absent_gpu(wanted.hardware).rate.flops == pytest.approx(0.4 * 989.4e12)
    assert flops > 0 and not Path(wanted.runs_dir).exists()
    with pytest.raises(BadEnvironment, match=r"no CUDA device here; to plan for a GPU, name it: hardware.gpu="):
        train(config(**{"hardware.device": "cuda"}, dry_run=True))
    with pytest.raises(BadInput, match="the peak of h100 is only known for bf16 and fp16"):
        train(config(**hardware, **{"hardware.precision": "fp32"}, dry_run=True))
    with pytest.raises(BadEnvironment, match=r"no CUDA device here; use hardware.device=cpu"):
        train(config(**hardware))


@pytest.mark.parametrize("name", [name for name in choices("hardware") if "00" in name])
def test_files_of_known_hardware_name_their_gpu(name: str) -> None:
    (config,) = read_configs("train", TrainConfig, [f"hardware={name}", "training.batch_tokens=1024"])
    assert config.hardware.gpu is not None and config.hardware.gpu.split("_")[0] in name


def test_a_plan_of_years_on_a_cpu_names_gpus() -> None:
    slow = replace(MACHINE, gpu=False, rate=Rate(1e9, "measured"))
    config = gpt2()
    assert "dry_run=true hardware=8xh100" in Plan(config, config.model.with_vocab(50_257), 1, slow).lines()[-1]


def test_data_that_is_not_prepared_is_in_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data=openwebtext", "dry_run=true", f"data.dir={tmp_path / 'data'}", "hardware=h100"]
    assert train(read_configs("train", TrainConfig, [*words, f"runs_dir={tmp_path / 'runs'}"])[0]) == 0
    assert ": not prepared; run: nanogpt prepare data=openwebtext" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_is_told_before_data_is_prepared(config: Build, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for changes, message in (
        ({"runs_dir": str(tmp_path / "file")}, r"^runs_dir=.*file: not a folder"),
        ({"resume.run": "nowhere"}, "^resume.run=nowhere: not a run directory"),
        ({"data.dir": str(tmp_path / "file")}, r"^data.dir=.*file: not a folder"),
    ):
        with pytest.raises(BadInput, match=message):
            train(config(**changes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "file"]
