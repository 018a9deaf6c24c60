"""A machine with a GPU that torch can't use: what is in the way, and which torch or driver would do."""

from collections.abc import Callable

import pytest
import torch

from nanogpt import cuda_driver
from nanogpt.config import HardwareConfig, TrainConfig
from nanogpt.cuda_driver import explain_no_cuda
from nanogpt.device import Compute, find_device
from nanogpt.errors import BadEnvironment
from nanogpt.training.auto_choices import describe_choices

Build = Callable[..., TrainConfig]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`machine(driver, wheel)`: the CUDA version of the driver, and that torch is built for."""

    def set_up(driver: tuple[int, int] | None, wheel: str | None, visible: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(cuda_driver, "read_driver_cuda", lambda: driver)
        monkeypatch.setattr(torch.version, "cuda", wheel)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return set_up


@pytest.mark.parametrize(
    ("driver", "wheel", "visible", "words"),
    [
        ((12, 2), "13.0", None, ["CUDA 12.2 at most", "needs 13.0", "a driver from 580.65.06 on", "whl/cu126"]),
        ((11, 8), "12.6", None, ["CUDA 11.8 at most", "needs 12.6", "a driver from 525.60.13 on"]),
        ((12, 2), None, None, ["is built for CPUs", "whl/cu126"]),
        ((13, 0), None, None, ["is built for CPUs", "whl/cu130"]),
        ((12, 2), "12.8", "9", ["CUDA_VISIBLE_DEVICES=9 names no GPU"]),
        ((12, 2), "12.8", None, ["nvidia-smi"]),
    ],
)
def test_what_is_in_the_way(
    driver: tuple[int, int], wheel: str | None, visible: str | None, words: list[str], machine: Callable[..., None]
) -> None:
    machine(driver, wheel, visible)
    assert all(word in explain_no_cuda() for word in words)
    assert (driver[0] == 11) == ("whl/" not in explain_no_cuda() and visible is None and wheel == "12.6")
    with pytest.raises(BadEnvironment) as caught:
        find_device("cuda", "hardware.device")
    assert str(caught.value).startswith("hardware.device=cuda: no CUDA device here; ") and words[0] in str(caught.value)


def test_auto_on_the_cpu_of_such_a_machine_is_not_silent(config: Build, machine: Callable[..., None]) -> None:
    machine((12, 2), "13.0")
    (line,) = describe_choices(config(), Compute(torch.device("cpu"), "fp32", "a CPU"))
    assert line.startswith("warning: on the CPU, though the driver runs CUDA 12.2 at most")
    asked = HardwareConfig(device="cpu")
    assert describe_choices(config(), Compute(torch.device("cpu"), "fp32", "a CPU", requested=asked)) == []
    machine(None, None)
    assert describe_choices(config(), Compute(torch.device("cpu"), "fp32", "a CPU")) == []


def test_the_driver_of_this_machine_is_read() -> None:
    found = cuda_driver.read_driver_cuda()
    assert found is None or found >= (11, 0)
