"""NVIDIA's driver: why torch finds no GPU on a machine with one, and the energy of a GPU."""

import ctypes
import os

import torch

from nanogpt.errors import one_line

OLDEST_DRIVER = {12: "525.60.13", 13: "580.65.06"}
"""{CUDA major version: first Linux driver that runs it} (CUDA Toolkit release notes, "CUDA Driver")."""
WHEELS = {12: "cu126"}
"""{CUDA major version of an older driver: the build of torch for it}."""


def read_driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA version that the installed driver supports; None without a driver."""
    try:
        library, version = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def explain_no_cuda() -> str:
    """Return why torch has no CUDA device here, and what to do; empty if there is no NVIDIA driver."""
    driver = read_driver_cuda()
    if driver is None or torch.cuda.is_available():
        return ""
    runs, built = ".".join(map(str, driver)), torch.version.cuda
    index = f"pip install torch --index-url https://download.pytorch.org/whl/{WHEELS.get(driver[0], 'cu130')}"
    if built is None:
        return f"the driver runs CUDA {runs}, but torch {torch.__version__} is built for CPUs: {index}"
    major = int(built.partition(".")[0])
    if driver[0] < major:
        newer = f"a driver from {OLDEST_DRIVER.get(major, 'a newer series')} on"
        other = f", or a torch for CUDA {driver[0]}: {index}" if driver[0] in WHEELS else ""
        return f"the driver runs CUDA {runs} at most, and torch {torch.__version__} needs {built}: {newer}{other}"
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return f"CUDA_VISIBLE_DEVICES={one_line(visible)} names no GPU that is here; nvidia-smi -L lists them"
    return f"the driver runs CUDA {runs}, but torch, for {built}, finds no GPU; nvidia-smi says what the driver sees"


def read_energy(uuid: str) -> float | None:
    """Return the joules that a GPU has used since its driver was loaded, for all its processes together; None where
    NVML can't tell, as on GPUs before Volta and on MIG slices.
    """
    gpu, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        failed = (
            nvml.nvmlInit_v2()
            or nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(gpu))
            or nvml.nvmlDeviceGetTotalEnergyConsumption(gpu, ctypes.byref(millijoules))
        )
    except (OSError, AttributeError):
        return None
    return None if failed else millijoules.value / 1000
