"""Which device and which precision, checked against what this machine has."""

import os
import platform
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from nanogpt.config import HardwareConfig, Precision
from nanogpt.errors import BadEnvironment, BadInput

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Where and how matrix products are computed."""

    device: torch.device
    precision: Precision
    name: str
    """The device's own name, as in the table of peaks."""

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in this precision; nothing to do for fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])

    def peak_memory(self) -> int | None:
        """Most bytes allocated so far, on CUDA."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None


def find_device(wanted: str, key: str = "hardware.device") -> torch.device:
    """`auto`, cpu, cuda, cuda:N or mps as a device that exists. Raises BadEnvironment naming `key`."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise BadEnvironment(f"{key}=mps: no Apple GPU here; use {key}=cpu")
    if wanted.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise BadEnvironment(f"{key}={wanted}: no CUDA device here; use {key}=cpu")
        if (torch.device(wanted).index or 0) >= count:
            raise BadEnvironment(f"{key}={wanted}: allowed cuda:0..cuda:{count - 1}")
    return torch.device(wanted)


def set_up(hardware: HardwareConfig, local_rank: int = 0, local_world: int = 1) -> Compute:
    """Choose the device and precision of a rank, and set torch's threads and TF32. Raises BadEnvironment, BadInput."""
    device = find_device(hardware.device)
    if local_world > 1:
        device = own_device(device, hardware, local_rank, local_world)
    if hardware.compile and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cc")):
        raise BadEnvironment("hardware.compile=true: torch.compile needs a C++ compiler and there is none here")
    if hardware.deterministic:
        make_deterministic()
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    elif local_world > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // local_world))
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in fp32
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return Compute(device, find_precision(hardware, device), name)


def make_deterministic() -> None:
    """Kernels and sums between GPUs that give the same bits every time (PyTorch docs, "Reproducibility")."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    os.environ.setdefault("NCCL_PROTO", "Simple")
    torch.use_deterministic_algorithms(True)


def own_device(device: torch.device, hardware: HardwareConfig, local_rank: int, local_world: int) -> torch.device:
    """One GPU for each rank of this machine; the CPU is shared."""
    if device.type == "mps" or ":" in hardware.device:
        raise BadInput(f"hardware.device={hardware.device}: {local_world} ranks need hardware.device=cuda or cpu")
    if device.type == "cuda":
        if local_world > torch.cuda.device_count():
            raise BadInput(f"hardware.devices={local_world}: this machine has {torch.cuda.device_count()} GPUs")
        return torch.device("cuda", local_rank)
    return device


def cpu_name() -> str:
    """The processor's model where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def memory_bytes(device: torch.device) -> int | None:
    """All the memory of a device, or None where it can't be told."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def available_bytes() -> int | None:
    """Memory of this machine that nobody uses, or None where it can't be told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def find_precision(hardware: HardwareConfig, device: torch.device) -> Precision:
    """The precision asked for, or the best the device has. Raises BadEnvironment."""
    wanted = hardware.precision
    has_bf16 = device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0))
    if wanted == "auto":
        return "fp32" if device.type != "cuda" else "bf16" if has_bf16 else "fp16"
    if wanted == "bf16" and not has_bf16:
        raise BadEnvironment(f"hardware.precision=bf16: {device} doesn't have it; allowed: fp16, fp32")
    if wanted == "fp16" and device.type != "cuda":
        raise BadEnvironment("hardware.precision=fp16: needs a CUDA device; allowed: bf16, fp32")
    return wanted
