"""8-bit floats: the same parameters in a second form; what can't do them is refused in one line before the start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanogpt import device as devices
from nanogpt.config import HardwareConfig, TrainConfig
from nanogpt.data.batches import TrainBatches
from nanogpt.data.prepare import prepare
from nanogpt.device import set_up_device
from nanogpt.errors import BadEnvironment, BadInput
from nanogpt.model.float8 import convert_to_float8
from nanogpt.model.gpt import GPT
from nanogpt.training.run import train
from nanogpt.training.state import build_state
from nanogpt.training.step import train_step
from tests.estimates.test_flops import small

Build = Callable[..., TrainConfig]
ON = {"hardware.fp8": True, "hardware.compile": True}


def test_fp8_needs_compiling_and_bf16(config: Build) -> None:
    with pytest.raises(BadInput, match=r"hardware.fp8=true: .*hardware.compile=true"):
        config(**{"hardware.fp8": True, "hardware.compile": False})
    for precision in ("fp32", "fp16"):
        with pytest.raises(BadInput, match=rf"hardware.fp8=true: .*hardware.precision=bf16 or auto, not {precision}"):
            config(**ON, **{"hardware.precision": precision})


def test_fp8_on_a_cpu_is_refused_before_anything_is_written(config: Build) -> None:
    built = config(**ON, **{"hardware.device": "cpu"})
    with pytest.raises(BadEnvironment, match=r"^hardware.fp8=true: cpu .*allowed: false, or .* capability 8.9"):
        train(built)
    assert not Path(built.runs_dir).exists()


def test_an_old_gpu_and_a_missing_torchao_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_device", lambda *_: torch.device("cuda", 0))
    monkeypatch.setattr(devices, "find_spec", lambda _: None)
    hardware = HardwareConfig(fp8=True, compile=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    with pytest.raises(BadEnvironment, match=r"hardware.fp8=true: cuda:0 .*allowed: false, or .* capability 8.9"):
        set_up_device(hardware)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    with pytest.raises(BadEnvironment, match=r"hardware.fp8=true: .*pip install 'torchao>=0.18'"):
        set_up_device(hardware)


def test_emulated_it_trains_the_same_parameters() -> None:
    pytest.importorskip("torchao")
    model = GPT(small(n_embd=32, n_head=2))
    ids = torch.randint(50, (2, 11), generator=torch.Generator().manual_seed(1))
    twin = convert_to_float8(model, emulate=True)
    named = dict(model.named_parameters())
    assert all(named.pop(name) is parameter for name, parameter in twin.named_parameters()) and not named
    assert twin.lm_head.weight is twin.token_embedding.weight
    grads: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    for form in (model, twin):
        model.zero_grad()
        losses.append(form(ids, ids))
        losses[-1].backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[0] != losses[1] and abs(losses[1] / losses[0] - 1) < 0.02
    assert torch.cosine_similarity(grads[0], grads[1], dim=0) > 0.98


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="no GPU with 8-bit floats"
)
def test_a_gpu_learns_in_fp8_what_it_learns_in_bf16(config: Build) -> None:
    pytest.importorskip("torchao")
    losses: list[list[float]] = []
    for fp8 in (False, True):
        built = config(**{**ON, "hardware.fp8": fp8, "hardware.device": "cuda", "hardware.precision": "bf16"})
        compute, dataset = set_up_device(built.hardware), prepare(built.data)
        state = build_state(built, built.model.with_vocab(dataset.vocab_size), compute)
        batches = TrainBatches(dataset.train, built, compute.device)
        steps = [train_step(state, batches.micro_batches(state.samples), built).wait() for _ in range(10)]
        losses.append([float(step.loss) for step in steps])
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 0.1
