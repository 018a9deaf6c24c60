"""Read the null GPU's counters: kernels and graphs started, and times that the host waited for the device."""

import ctypes


def on_null_gpu() -> bool:
    """Return True where this process runs under tests/null_gpu/run."""
    return hasattr(ctypes.CDLL(None), "null_gpu_launches")


def launches() -> int:
    return ctypes.c_long.in_dll(ctypes.CDLL(None), "null_gpu_launches").value


def waits() -> int:
    return ctypes.c_long.in_dll(ctypes.CDLL(None), "null_gpu_waits").value
