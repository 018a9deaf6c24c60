"""Device, precision and attention kernels of a rank, checked against the hardware of this machine."""

import os
import platform
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanogpt.config import Attention, HardwareConfig, ModelConfig, Precision
from nanogpt.cpu_threads import Threads, choose_threads
from nanogpt.cuda_driver import explain_no_cuda, read_energy
from nanogpt.errors import BadEnvironment, BadInput
from nanogpt.torch_compile import choose_compile, set_compile_cache

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CUDNN_CAPABILITIES = ((9, 0), (10, 0), (10, 3))  # H100, H200; B200, GB200; B300: torch prefers cuDNN's attention
KERNELS: dict[Attention, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Compute:
    """Device of a rank and how it multiplies matrices and computes attention."""

    device: torch.device
    precision: Precision
    name: str
    """Name of the device, as in estimates/gpu_specs.py."""
    threads: str = ""
    """Number of CPU threads and its origin, for the run header."""
    attention: tuple[Attention, ...] = ()
    """Attention kernels in the order they are tried; empty: torch's order."""
    eval_attention: tuple[Attention, ...] = ()
    """Attention kernels outside training steps, where shapes vary, in order."""
    compiles: bool = False
    """True if the model is compiled for training, on request or by `auto`."""
    compile_problem: str = ""
    """Reason why hardware.compile=auto did not compile although it would on this device; else empty."""
    fused: bool = False
    """True if the model is trained as one network with others (training/fused.py)."""
    requested: HardwareConfig = field(default_factory=HardwareConfig)
    """The hardware section as the user gave it, with `auto` values."""

    @contextmanager
    def autocast(self) -> Generator[None, None, None]:
        """Multiply matrices in this precision and compute attention by these kernels."""
        with self.products(), self.kernels():
            yield

    @contextmanager
    def evaluation(self) -> Generator[None, None, None]:
        """Multiply matrices in this precision and compute attention by the kernels for varying shapes."""
        with self.products(), prefer_kernels(self.eval_attention):
            yield

    def products(self) -> AbstractContextManager[object]:
        """Return the autocast context of the precision."""
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.device.type, DTYPES[self.precision])

    def kernels(self) -> AbstractContextManager[object]:
        """Return the context that selects the attention kernels for training."""
        return prefer_kernels(self.attention)

    def peak_memory(self) -> int | None:
        """Return the peak of allocated bytes on CUDA, else None."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def read_energy(self) -> float | None:
        """Return the joules that the GPU has used since its driver was loaded; None if not known."""
        if self.device.type != "cuda":
            return None
        about: Any = torch.cuda.get_device_properties(self.device)
        return read_energy(str(getattr(about, "uuid", "")))


def prefer_kernels(order: Sequence[Attention]) -> AbstractContextManager[object]:
    """Return a context that tries these attention kernels in order, and no others; empty: torch's order."""
    kernels = [KERNELS[name] for name in order]
    return sdpa_kernel(kernels, set_priority=True) if kernels else nullcontext()


def find_device(wanted: str, key: str = "hardware.device") -> torch.device:
    """Return the device for `auto`, cpu, cuda, cuda:N or mps. Raises BadEnvironment naming `key` if there is none."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise BadEnvironment(f"{key}=mps: no Apple GPU here; use {key}=cpu")
    if wanted.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            why = f"; {why}" if (why := explain_no_cuda()) else ""
            raise BadEnvironment(f"{key}={wanted}: no CUDA device here{why}; use {key}=cpu")
        if (torch.device(wanted).index or 0) >= count:
            raise BadEnvironment(f"{key}={wanted}: allowed cuda:0..cuda:{count - 1}")
    return torch.device(wanted)


def set_up_device(
    hardware: HardwareConfig,
    local_rank: int = 0,
    local_world: int = 1,
    section: str = "hardware.",
    gpu: int | None = None,
) -> Compute:
    """Choose the device and precision of a rank, and set torch's threads and TF32. Raises BadEnvironment, BadInput.

    `section` is the prefix of the keys of `hardware` in error messages. `gpu` is the GPU that the ranks agreed on; by
    default a rank takes the GPU of its local rank.
    """
    device = find_device(hardware.device, f"{section}device")
    if gpu is not None and ":" not in hardware.device:
        device = torch.device("cuda", gpu)
    elif local_world > 1:
        device = choose_own_device(device, hardware, local_rank, local_world, section)
    if hardware.fp8:
        check_fp8(device, section)
    if hardware.deterministic:
        make_deterministic()
    threads = set_threads(hardware.threads, local_world)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
        set_tf32(hardware.tf32)
    compiles, problem = choose_compile(hardware, device, section)
    if compiles:
        set_compile_cache(hardware.attention)
    return Compute(
        device=device,
        precision=find_precision(hardware, device, section),
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        threads=threads,
        attention=kernel_order(hardware.attention, device),
        eval_attention=eval_kernel_order(hardware.attention, device),
        compiles=compiles,
        compile_problem=problem,
        requested=hardware,
    )


def set_tf32(on: bool) -> None:
    """Allow TF32 in fp32 matrix products on CUDA, or forbid it."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def set_threads(wanted: int | None, local_world: int) -> str:
    """Set torch's CPU threads to `wanted` or to a rank's share of the machine. Returns number and origin as text."""
    found = Threads(wanted, "hardware.threads") if wanted else choose_threads(os.environ, local_world)
    found = found or Threads(max(1, torch.get_num_threads() // local_world), "torch's choice")
    torch.set_num_threads(found.number)
    return f"{found.number} {'thread' if found.number == 1 else 'threads'} ({found.why})"


def kernel_order(wanted: Attention, device: torch.device) -> tuple[Attention, ...]:
    """Return the wanted attention kernel, then fallbacks for what it does not support, such as masks.

    `auto` is torch's order, except on Hopper and Blackwell: cuDNN first, as in torch 2.13, but not before cuDNN 9.15.1,
    whose kernel is wrong for lengths that 128 does not divide (pytorch/pytorch#169849).
    """
    if wanted == "math":
        return ("math",)
    first: tuple[Attention, ...] = () if wanted == "auto" else (wanted,)
    if not first and device.type == "cuda" and torch.cuda.get_device_capability(device) in CUDNN_CAPABILITIES:
        first = ("cudnn", "flash") if (torch.backends.cudnn.version() or 0) > 91500 else ("flash",)
    rest: tuple[Attention, ...] = ("flash", "efficient", "math") if device.type == "cuda" else ("math",)
    return (*first, *(name for name in rest if name not in first)) if first else ()


def eval_kernel_order(wanted: Attention, device: torch.device) -> tuple[Attention, ...]:
    """Return the order of kernels outside training steps: without cuDNN, unless it was requested.

    cuDNN spends tenths of a second on the plan of each new shape (modelscope/FunASR#3704, sgl-project/sglang#4650), and
    shapes change with every batch of a benchmark and every token of a generated text.
    """
    if wanted == "auto" and device.type == "cuda":
        return ("flash", "efficient", "math")
    return kernel_order(wanted, device)


def attention_used(wanted: Attention, compute: Compute, model: ModelConfig, section: str = "hardware.") -> str:
    """Return the name of the attention kernel used in training. Raises BadEnvironment if it is not the wanted one.

    With dropout it is `open`: nanogpt/model/attention.py computes the scores itself.
    """
    known = KERNELS if compute.device.type in ("cpu", "cuda") else ()
    usable = () if wanted == "auto" else [name for name in known if is_kernel_usable(name, compute, model)]
    if wanted not in ("auto", *usable):
        allowed = ", ".join(("auto", *usable))
        what = f"{compute.device} has no such kernel for heads of {model.head_size} in {compute.precision}"
        raise BadEnvironment(f"{section}attention={wanted}: {what}; allowed: {allowed}")
    if model.dropout:
        return "open"
    return find_default_kernel(compute.attention, compute, model) if known else "torch's"


def is_kernel_usable(name: Attention, compute: Compute, model: ModelConfig) -> bool:
    """Return whether torch uses this kernel if it is tried first."""
    return find_default_kernel(kernel_order(name, compute.device), compute, model) == name


def find_default_kernel(order: tuple[Attention, ...], compute: Compute, model: ModelConfig) -> str:
    """Return the kernel that torch uses for causal attention of whole blocks, with gradients."""
    dtype = DTYPES.get(compute.precision, torch.float32)
    shape = (1, model.n_head, model.block_size, model.head_size)
    q = torch.zeros(shape, dtype=dtype, device=compute.device, requires_grad=True)
    with prefer_kernels(order):
        number = torch._fused_sdp_choice(q, q, q, is_causal=True)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return next((name for name, kernel in KERNELS.items() if kernel.value == number), "unknown")


def make_deterministic() -> None:
    """Select deterministic kernels and reductions between GPUs (PyTorch docs, "Reproducibility")."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    os.environ.setdefault("NCCL_PROTO", "Simple")
    torch.use_deterministic_algorithms(True)


def choose_own_device(
    device: torch.device, hardware: HardwareConfig, local_rank: int, local_world: int, section: str
) -> torch.device:
    """Return the GPU of the local rank, or the CPU, which all ranks share. Raises BadInput."""
    if device.type == "mps" or ":" in hardware.device:
        raise BadInput(f"{section}device={hardware.device}: {local_world} ranks need {section}device=cuda or cpu")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if local_world > count:
            raise BadInput(f"{section}devices={local_world}: this machine has {count} GPUs")
        return torch.device("cuda", local_rank)
    return device


def cpu_name() -> str:
    """Return the model name of the CPU if the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def memory_bytes(device: torch.device) -> int | None:
    """Return the total memory of a device in bytes; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def available_bytes() -> int | None:
    """Return the available memory of this machine in bytes; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def check_fp8(device: torch.device, section: str) -> None:
    """Raise BadEnvironment if the device cannot multiply 8-bit floats, or torchao is not installed."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        allowed = "allowed: false, or a CUDA device of compute capability 8.9 or more"
        raise BadEnvironment(f"{section}fp8=true: {device} has no products of 8-bit floats; {allowed}")
    if find_spec("torchao") is None:
        raise BadEnvironment(f"{section}fp8=true: torchao is not installed: pip install 'torchao>=0.18'")


def find_precision(hardware: HardwareConfig, device: torch.device, section: str) -> Precision:
    """Return the configured precision, or the best that the device has for `auto`. Raises BadEnvironment."""
    wanted = hardware.precision
    has_bf16 = device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0))
    if wanted == "auto":
        return "fp32" if device.type != "cuda" else "bf16" if has_bf16 else "fp16"
    if wanted == "bf16" and not has_bf16:
        raise BadEnvironment(f"{section}precision=bf16: {device} doesn't have it; allowed: fp16, fp32")
    if wanted == "fp16" and device.type != "cuda":
        raise BadEnvironment(f"{section}precision=fp16: needs a CUDA device; allowed: bf16, fp32")
    return wanted
