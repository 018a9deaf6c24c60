"""Known GPUs: memory size, peak bandwidth and peak of the matrix units, from the makers' data sheets.

Not compared with a data sheet yet: gb300, gb200, b300, h200_nvl, a10, a10g, rtx_6000_ada, rtx_5090.
"""

import re
from dataclasses import dataclass

from nanogpt.config import Gpu, Precision


@dataclass(frozen=True)
class GpuSpec:
    """A model of GPU."""

    pattern: str
    """Matches torch's whole device name. Laptop versions, MIG slices and successors have other names."""
    gigabytes: float
    """Memory as sold, in 10**9 bytes. The device may report a little more."""
    tflops: float
    """Peak of dense bf16 or fp16 matrix products with fp32 accumulation, 10**12 FLOP/s."""
    bandwidth: float
    """Peak of memory, reads and writes together, 10**12 bytes/s."""
    bf16: bool = True
    bandwidths: tuple[tuple[str, float], ...] = ()
    """Bandwidth of variants with other memory, by a part of their name."""

    @property
    def memory(self) -> int:
        """Memory in bytes."""
        return round(self.gigabytes * 1e9)

    @property
    def precision(self) -> Precision:
        """Precision that `hardware.precision=auto` chooses."""
        return "bf16" if self.bf16 else "fp16"


GPU_SPECS: dict[Gpu, GpuSpec] = {
    # Blackwell: half of NVIDIA's figures for racks and boards, which are with sparsity, over the number of GPUs
    "gb300": GpuSpec(r"GB300", 288, 2500.0, 8.0),
    "gb200": GpuSpec(r"GB200", 186, 2500.0, 8.0),
    "b300": GpuSpec(r"B300( SXM6 AC)?", 288, 2250.0, 8.0),
    "b200": GpuSpec(r"B200", 180, 2250.0, 8.0),
    # The newer variant has 144 GB. The number in the name is not the GPU's memory.
    "gh200": GpuSpec(r"GH200 \d+GB?( HBM3e)?", 96, 989.4, 4.0, bandwidths=(("HBM3e", 4.9),)),
    "h200": GpuSpec(r"H200", 141, 989.4, 4.8),
    "h200_nvl": GpuSpec(r"H200 NVL", 141, 835.5, 4.8),
    "h100": GpuSpec(r"H100( 80GB HBM3)?", 80, 989.4, 3.35),
    "h100_nvl": GpuSpec(r"H100 NVL", 94, 835.5, 3.9),
    "h100_pcie": GpuSpec(r"H100 PCIe", 80, 756.5, 2.0),
    "a100_80gb": GpuSpec(
        r"A100(-SXM4-80GB|-SXM-80GB|-PCIE-80GB| 80GB PCIe)", 80, 311.9, 2.039, bandwidths=(("PCI", 1.935),)
    ),
    "a100_40gb": GpuSpec(r"A100(-SXM4-40GB|-SXM-40GB|-PCIE-40GB)", 40, 311.9, 1.555),
    "a800_80gb": GpuSpec(r"A800-SXM4-80GB", 80, 311.9, 2.039),
    "l40s": GpuSpec(r"L40S", 48, 362.1, 0.864),
    "l4": GpuSpec(r"L4", 24, 121.0, 0.3),
    "a10": GpuSpec(r"A10", 24, 125.0, 0.6),
    "a10g": GpuSpec(r"A10G", 24, 70.0, 0.6),
    "a40": GpuSpec(r"A40", 48, 149.7, 0.696),
    "rtx_a6000": GpuSpec(r"RTX A6000", 48, 154.8, 0.768),
    "rtx_6000_ada": GpuSpec(r"RTX 6000 Ada Generation", 48, 364.2, 0.96),
    "rtx_5090": GpuSpec(r"GeForce RTX 5090", 32, 209.5, 1.792),  # twice as much with fp16 accumulation
    "rtx_4090": GpuSpec(r"GeForce RTX 4090", 24, 165.2, 1.008),
    "rtx_3090": GpuSpec(r"GeForce RTX 3090", 24, 71.2, 0.936),
    "v100_32gb": GpuSpec(r"Tesla V100-SXM2-32GB", 32, 125.0, 0.9, bf16=False),
    "v100_16gb": GpuSpec(r"Tesla V100-SXM2-16GB", 16, 125.0, 0.9, bf16=False),
    "t4": GpuSpec(r"Tesla T4", 16, 65.1, 0.32, bf16=False),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the device's peak in FLOP/s, or None if it is unknown: then there is no MFU."""
    found = find_gpu(device_name)
    if found is None or precision not in ("fp16", found.precision):
        return None
    return found.tflops * 1e12


def compute_mfu(flops: float, device_name: str, precision: str, devices: int = 1) -> float | None:
    """Return the model FLOPs utilization, `flops` per second over the peak of all `devices`; None: unknown peak."""
    peak = peak_flops(device_name, precision)
    return None if peak is None else flops / (peak * devices)


def peak_bandwidth(device_name: str) -> float | None:
    """Return the peak bandwidth of the device's memory in bytes/s, or None if it is unknown."""
    found = find_gpu(device_name)
    if found is None:
        return None
    return 1e12 * next((rate for part, rate in found.bandwidths if part in device_name), found.bandwidth)


def find_gpu(device_name: str) -> GpuSpec | None:
    """Return the GPU with this torch device name, or None."""
    name = device_name.removeprefix("NVIDIA ")
    return next((device for device in GPU_SPECS.values() if re.fullmatch(device.pattern, name)), None)
