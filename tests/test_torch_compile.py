"""hardware.compile=auto on a pretended GPU: compiled where that can work, else eager with what is missing by name."""

import os
import shutil
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nanogpt.config import HardwareConfig, TrainConfig
from nanogpt.device import Compute
from nanogpt.distributed.env import RankEnv
from nanogpt.errors import BadEnvironment, BadInput
from nanogpt.schema import from_dict
from nanogpt.torch_compile import choose_compile, find_cache_folder, is_on_network
from nanogpt.training.auto_choices import describe_choices

Build = Callable[..., TrainConfig]
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A GPU that Triton compiles for, with Triton, compilers and Python.h."""
    (tmp_path / "Python.h").touch()
    for name in ("CC", "CXX", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")  # pyright: ignore[reportUnknownLambdaType]
    return monkeypatch


def test_auto_compiles_on_cuda_alone(able: pytest.MonkeyPatch) -> None:
    usual = HardwareConfig()
    assert usual.compile == "auto"
    assert choose_compile(usual, GPU) == (True, "")
    assert choose_compile(HardwareConfig(compile=False), GPU) == (False, "")
    for device in (CPU, torch.device("mps")):
        assert choose_compile(usual, device) == (False, "")
        assert choose_compile(HardwareConfig(compile=True), device) == (True, "")
        assert choose_compile(HardwareConfig(compile_mode="max-autotune"), device) == (True, "")


def take_away(able: pytest.MonkeyPatch, what: str) -> None:
    """Take one of the things that compiling needs."""
    compilers = {"C compiler": ("gcc", "clang"), "C++ compiler": ("g++",)}
    if what == "capability 7.0":
        able.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))  # pyright: ignore[reportUnknownLambdaType]
    elif what == "Triton":
        able.setitem(sys.modules, "triton", None)
    elif what == "Python.h":
        able.setattr(sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    else:
        able.setattr(shutil, "which", lambda name: None if name in compilers[what] else name)  # pyright: ignore[reportUnknownLambdaType]


@pytest.mark.parametrize("what", ["capability 7.0", "Triton", "C compiler", "C++ compiler", "Python.h"])
def test_what_is_missing_is_named(what: str, able: pytest.MonkeyPatch) -> None:
    """`auto` is eager and says why, `true` is an error, and so is what needs compiling."""
    take_away(able, what)
    compiles, why = choose_compile(HardwareConfig(), GPU)
    assert not compiles and what in why and "apt" not in why.replace("apt install", "", 1)
    for asked, key in (
        ({"compile": True}, "hardware.compile=true"),
        ({"fp8": True}, "hardware.fp8=true"),
        ({"compile_mode": "reduce-overhead"}, "hardware.compile_mode=reduce-overhead"),
    ):
        with pytest.raises(BadEnvironment) as caught:
            choose_compile(from_dict(HardwareConfig, asked), GPU)
        assert str(caught.value).startswith(f"{key}: ") and why in str(caught.value)


def test_a_compiler_or_header_that_is_named_counts(able: pytest.MonkeyPatch, tmp_path: Path) -> None:
    able.setattr(shutil, "which", lambda name: name if name == "icpx" else None)  # pyright: ignore[reportUnknownLambdaType]
    able.setattr(sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    assert choose_compile(HardwareConfig(), GPU)[0] is False
    able.setenv("CC", "icpx")
    able.setenv("CXX", "icpx")
    able.setenv("CPATH", f"/nothing:{tmp_path}")
    assert choose_compile(HardwareConfig(), GPU) == (True, "")


def test_the_package_with_the_header_of_this_python(able: pytest.MonkeyPatch) -> None:
    take_away(able, "Python.h")
    assert f"python3.{sys.version_info.minor}-dev" in choose_compile(HardwareConfig(), GPU)[1]


def test_a_mode_or_fp8_without_compiling_is_refused() -> None:
    for asked in ({"fp8": True}, {"compile_mode": "max-autotune"}):
        with pytest.raises(BadInput, match=r"hardware.compile=true"):
            from_dict(HardwareConfig, asked | {"compile": False})


def test_a_start_says_what_was_chosen_and_how_to_choose_otherwise(config: Build, able: pytest.MonkeyPatch) -> None:
    able.setattr("nanogpt.training.auto_choices.attention_used", lambda *_: "cudnn")  # pyright: ignore[reportUnknownLambdaType]
    asked = HardwareConfig(device="cuda", micro_batch_size="auto")
    compute = Compute(GPU, "bf16", "NVIDIA H100", compiles=True, requested=asked)
    built = config(**{"hardware.micro_batch_size": 4, "model.dropout": 0.0})
    choice, other = describe_choices(built, compute)
    for words in ("bf16 (the GPU has it)", "compiled (", "cudnn attention", "micro-batches of 4 "):
        assert words in choice
    assert other.split(": ")[1].split() == [
        "hardware.precision=fp32",
        "hardware.compile=false",
        "hardware.attention=math",
        "hardware.micro_batch_size=8",
    ]
    eager = Compute(GPU, "fp16", "Tesla P100", compile_problem="no Triton", requested=asked)
    note, choice, other = describe_choices(built, eager)
    assert note == "note    not compiled: no Triton; without this note: hardware.compile=false"
    assert "fp16 (the GPU has no bf16)" in choice and "compiled" not in choice and "compile" not in other
    given = HardwareConfig(device="cuda", precision="bf16", compile=True, attention="flash", micro_batch_size=4)
    assert describe_choices(built, Compute(GPU, "bf16", "NVIDIA H100", compiles=True, requested=given)) == []
    assert describe_choices(built, Compute(CPU, "fp32", "a CPU", requested=asked)) == []


ALONE = RankEnv()
SEVERAL = RankEnv(rank=3, world=4, local_rank=1, local_world=2)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home, and places for temporary files, of this test."""
    for name in ("SLURM_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("home", "job", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def test_compiled_code_of_several_nodes_stays_on_each(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = f"nanogpt-lab-{os.geteuid()}/inductor"
    assert find_cache_folder(ALONE) == places / "home" / "nanogpt-lab" / "inductor"
    assert find_cache_folder(SEVERAL) == places / "tmp" / ours
    monkeypatch.setenv("TMPDIR", str(places))
    assert find_cache_folder(SEVERAL) == places / ours
    monkeypatch.setenv("SLURM_TMPDIR", str(places / "job"))
    assert find_cache_folder(SEVERAL) == places / "job" / ours
    assert all(one.stat().st_mode & 0o777 == 0o700 for one in (places / "job" / ours, (places / "job" / ours).parent))


def test_compiled_code_is_not_kept_on_a_network(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanogpt.torch_compile.is_on_network", lambda path: "tmp" not in path.name)  # pyright: ignore[reportUnknownLambdaType]
    assert find_cache_folder(ALONE) == places / "tmp" / f"nanogpt-lab-{os.geteuid()}" / "inductor"
    monkeypatch.setattr("nanogpt.torch_compile.is_on_network", lambda _: True)  # pyright: ignore[reportUnknownLambdaType]
    assert (
        find_cache_folder(ALONE) == places / "tmp" / f"nanogpt-lab-{os.geteuid()}-{socket.gethostname()}" / "inductor"
    )


def test_what_is_mounted_where(tmp_path: Path) -> None:
    table = tmp_path / "mounts"
    mounts = ("/dev/sda / ext4", "srv:/h /home nfs4", "tmpfs /home/local tmpfs", "x /my\\040data lustre")
    table.write_text("".join(f"{one} rw 0 0\n" for one in (*mounts, "sshfs /ssh fuse.sshfs", "auto /net autofs")))
    shared = [
        path for path in ("/home/me/.cache", "/my data/x", "/ssh/x", "/net/x") if is_on_network(Path(path), table)
    ]
    assert shared == ["/home/me/.cache", "/my data/x", "/ssh/x", "/net/x"]
    assert not any(is_on_network(Path(path), table) for path in ("/opt/cache", "/home/local/x", "/homes/x"))
    assert not is_on_network(Path("/home"), tmp_path / "none")


@pytest.mark.parametrize("kind", ["another's", "a link", "a file"])
def test_a_folder_that_is_not_ours_is_not_used(kind: str, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns it could put code there that this process would run."""
    trap = places / "home" / "nanogpt-lab"
    if kind == "another's":
        trap.mkdir()
        real = os.geteuid()
        monkeypatch.setattr("nanogpt.torch_compile.os.geteuid", lambda: real + 1)
    elif kind == "a link":
        trap.symlink_to(places / "job")
    else:
        trap.touch()
    found = find_cache_folder(ALONE)
    assert trap not in found.parents and found.parent.name.startswith("nanogpt-lab-" if kind != "another's" else "")
    assert found.stat().st_mode & 0o777 == 0o700
