"""Kernels of attention and what torch.compile keeps: what is used is what is said, and changes nothing but rounding."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanogpt.config import EvaluateConfig, HardwareConfig, ModelConfig, SampleConfig, TrainConfig
from nanogpt.device import (
    Compute,
    attention_used,
    check_fp8,
    eval_kernel_order,
    find_precision,
    kernel_order,
    set_tf32,
    set_up_device,
)
from nanogpt.errors import BadEnvironment, BadInput
from nanogpt.evaluation.command import evaluate
from nanogpt.generation.command import sample
from nanogpt.generation.decode import SamplingParams, generate
from nanogpt.model.gpt import GPT
from nanogpt.schema import from_dict, signature
from nanogpt.training.run import train
from tests.conftest import ROOT
from tests.estimates.test_flops import small

Build = Callable[..., TrainConfig]
CPU = torch.device("cpu")


def always(value: object) -> Callable[..., object]:
    """Return a function that returns `value`, whatever it is given."""

    def give(*_: object) -> object:
        return value

    return give


def on_cpu(attention: str) -> Compute:
    return set_up_device(from_dict(HardwareConfig, {"device": "cpu", "attention": attention}))


def names_of_kernels(run: Callable[[], object]) -> set[str]:
    """The attention operators that really ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return {event.key for event in profile.key_averages() if "scaled_dot_product" in event.key}


@pytest.mark.parametrize(("attention", "operator"), [("flash", "flash"), ("math", "math")])
def test_the_kernel_that_is_said_is_the_one_that_runs(attention: str, operator: str) -> None:
    model, compute, ids = GPT(small()), on_cpu(attention), torch.zeros(2, 12, dtype=torch.int64)

    def run() -> None:
        with compute.autocast():
            model(ids, ids).backward()

    assert attention_used(attention, compute, model.config) == attention  # type: ignore[arg-type]
    found = {name for name in names_of_kernels(run) if name != "aten::scaled_dot_product_attention"}
    assert found and all(operator in name for name in found)


def test_kernels_agree_and_dropout_uses_none() -> None:
    losses: list[float] = []
    ids = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))
    for attention in ("auto", "flash", "math"):
        with on_cpu(attention).autocast():
            losses.append(GPT(small())(ids, ids).item())
    assert max(losses) - min(losses) < 1e-4
    assert attention_used("auto", on_cpu("auto"), small(dropout=0.1)) == "open"


@pytest.mark.parametrize("attention", ["cudnn", "efficient"])
def test_a_kernel_the_device_lacks_is_refused_before_anything_is_written(config: Build, attention: str) -> None:
    built = config(**{"hardware.attention": attention})
    with pytest.raises(BadEnvironment, match=f"hardware.attention={attention}: cpu has .* allowed: auto, flash, math"):
        train(built)
    assert not Path(built.runs_dir).exists()


@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (10, 3)])
def test_on_hopper_and_blackwell_auto_is_cudnn_then_flash(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not a cuDNN that is wrong for lengths that 128 doesn't divide, which torch would take."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", always(capability))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91501)
    assert kernel_order("auto", gpu) == ("cudnn", "flash", "efficient", "math")
    assert kernel_order("efficient", gpu) == ("efficient", "flash", "math")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    assert kernel_order("auto", gpu) == ("flash", "efficient", "math")
    for other in ((8, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", always(other))
        assert kernel_order("auto", gpu) == ()


def test_a_mode_of_compiling_needs_compiling(config: Build) -> None:
    with pytest.raises(BadInput, match=r"hardware.compile_mode=reduce-overhead: .*hardware.compile=true"):
        config(**{"hardware.compile_mode": "reduce-overhead", "hardware.compile": False})
    changed = {"hardware.compile": True, "hardware.compile_mode": "max-autotune", "hardware.attention": "math"}
    assert signature(config(**changed)) == signature(config())


def test_what_is_compiled_is_kept_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "given")
    set_up_device(HardwareConfig(device="cpu", compile=True))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "given" and not list(tmp_path.iterdir())
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    set_up_device(HardwareConfig(device="cpu", compile=True))
    folder = tmp_path / "nanogpt-lab" / "inductor"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder) and folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("attention", ["auto", "flash", "cudnn", "efficient", "math"])
def test_gpu_kernels_agree(attention: str) -> None:
    model = ModelConfig(n_layer=2, n_head=2, n_embd=128, block_size=128, vocab_size=64)
    compute = set_up_device(from_dict(HardwareConfig, {"device": "cuda", "precision": "bf16", "attention": attention}))
    used = attention_used(attention, compute, model)  # type: ignore[arg-type]
    assert attention in ("auto", used)
    ids = torch.randint(64, (2, 128), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = float(GPT(model)(ids, ids))
        with compute.autocast():
            found = float(GPT(model).to("cuda")(ids.cuda(), ids.cuda()))
    assert abs(found / expected - 1) < 1e-2


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_outside_training_steps_cudnn_is_left_out_unless_asked_for(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It plans each new shape anew: each batch of a benchmark, each token of a text."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", always(capability))
    assert eval_kernel_order("auto", gpu) == ("flash", "efficient", "math")
    assert eval_kernel_order("cudnn", gpu) == ("cudnn", "flash", "efficient", "math")
    assert eval_kernel_order("auto", CPU) == ()


def test_evaluation_and_sampling_attend_in_that_order(config: Build) -> None:
    """Everything that isn't a training step enters `prefer` with it, and training steps don't."""
    orders: list[tuple[str, ...]] = []
    compute = Compute(CPU, "fp32", "", attention=("flash",), eval_attention=("math",))
    ids = torch.zeros(1, 12, dtype=torch.int64)
    for enter, operator in ((compute.evaluation, "math"), (compute.autocast, "flash")):
        with torch.no_grad(), enter():
            found = names_of_kernels(lambda: GPT(small())(ids, ids))
        orders.append(tuple(sorted(name for name in found if operator in name)))
    assert all(orders)
    text = [
        token
        for (token,) in generate(
            GPT(small()), [[1, 2]], 4, SamplingParams(temperature=0.0), [torch.Generator()], "math"
        )
    ]
    assert text == [
        token for (token,) in generate(GPT(small()), [[1, 2]], 4, SamplingParams(temperature=0.0), [torch.Generator()])
    ]
    for room in ("evaluation/loss.py", "evaluation/scoring.py"):
        assert "autocast()" not in (ROOT / "nanogpt" / room).read_text()


def test_a_kernel_that_evaluation_or_sampling_lacks_is_refused(config: Build, tmp_path: Path) -> None:
    built = config(**{"training.steps": 1, "schedule.warmup_steps": 0})
    assert train(built) == 0
    for command, kind in ((evaluate, EvaluateConfig), (sample, SampleConfig)):
        asked = from_dict(kind, {"runs_dir": built.runs_dir, "device": "cpu", "attention": "cudnn"})
        with pytest.raises(
            BadEnvironment, match=r"^attention=cudnn: cpu has no such kernel .* allowed: auto, flash, math"
        ):
            command(asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "capability", "words"),
    [
        ({"fp8": True}, (8, 6), r"^hardware\.fp8=true: cuda.* no products of 8-bit floats; .*capability 8\.9"),
        ({"precision": "bf16"}, (7, 5), r"^hardware\.precision=bf16: cuda.* doesn't have it; allowed: fp16, fp32"),
        ({"attention": "flash"}, (8, 0), r"^hardware\.attention=flash: .*heads of 6 in bf16; allowed: auto, efficient"),
        ({"attention": "cudnn"}, (8, 0), r"^hardware\.attention=cudnn: .*heads of 6 in bf16; allowed: auto, efficient"),
    ],
)
def test_what_an_older_gpu_lacks_is_named(
    asked: dict[str, object], capability: tuple[int, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As set_up and build_state ask, before the first step."""
    gpu, hardware = torch.device("cuda", 0), from_dict(HardwareConfig, asked)
    monkeypatch.setattr(torch.cuda, "get_device_capability", always(capability))

    def choose(order: tuple[str, ...], *_: object) -> str:
        return "efficient" if order[:1] == ("efficient",) else "math"

    monkeypatch.setattr("nanogpt.device.find_default_kernel", choose)
    with pytest.raises(BadEnvironment, match=words):
        if hardware.fp8:
            check_fp8(gpu, "hardware.")
        precision = find_precision(hardware, gpu, "hardware.")
        attention_used(hardware.attention, Compute(gpu, precision, "a GPU"), small())
    assert find_precision(HardwareConfig(), gpu, "hardware.") == ("bf16" if capability >= (8, 0) else "fp16")


def test_tf32_can_be_left(config: Build) -> None:
    """It is arithmetic: guarded, and as before where nothing is said; on a CPU it is nothing."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for on, expected in ((False, "highest"), (True, "high")):
            set_tf32(on)
            assert torch.get_float32_matmul_precision() == expected and torch.backends.cudnn.allow_tf32 is on
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert signature(config(**{"hardware.tf32": False})) == signature(config())
    gpu = {"hardware.device": "cuda"}
    assert signature(config(**gpu, **{"hardware.tf32": False})) != signature(config(**gpu))
