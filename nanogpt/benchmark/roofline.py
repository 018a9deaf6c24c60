"""Lower bounds of a training step's time: its matrix products, and the bytes that it moves through memory.

The device's peaks are from its data sheet (nanogpt/estimates/gpu_specs.py), or measured if that is unknown.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch

from nanogpt.benchmark.timing import choose_synchronize, format_digits, time_call
from nanogpt.config import BenchConfig
from nanogpt.device import DTYPES, Compute
from nanogpt.estimates.flops import flops_per_token
from nanogpt.estimates.gpu_specs import peak_bandwidth, peak_flops
from nanogpt.estimates.memory_traffic import step_traffic
from nanogpt.formatting import format_count

SIDES = (256, 512, 1024, 2048)  # sides of the square matrices whose products are timed
SLOW = 0.05  # seconds of a product after which no larger one is tried
COPIED = 2**28  # bytes, more than a cache holds
SECONDS, LEAST = 0.1, 3  # shortest duration and least repetitions of a measurement; the fastest counts


@dataclass(frozen=True)
class Peak:
    """A peak rate of a device."""

    rate: float
    """FLOP/s or bytes/s."""
    source: str

    def describe(self, number: float, unit: str) -> str:
        return f"{format_count(number, 'G')}{unit} at {format_count(self.rate, 'G')}{unit}/s ({self.source})"


@dataclass(frozen=True)
class Floors:
    """Lower bounds of a step in seconds, by the counts of flops.py and memory_traffic.py in nanogpt/estimates."""

    products: float
    memory: float
    names: tuple[str, str, str]
    """Names of three table rows: products, memory, and the parts of the latter."""
    parts: str
    """The moved bytes by kind."""

    def rows(self, *steps: float) -> list[tuple[str, ...]]:
        """Return table rows that compare measured steps, in seconds, with the bounds.

        The first step is this program's. Others compute the same products, but move other bytes.
        """

        def compare(floor: float, step: float) -> str:
            return f"{format_digits(1e3 * floor)} ms; the step takes {format_digits(step / floor)} x"

        empty = ("",) * (len(steps) - 1)
        return [
            (self.names[0], *(compare(self.products, step) for step in steps)),
            (self.names[1], compare(self.memory, steps[0]), *empty),
            (self.names[2], self.parts, *empty),
        ]


def compute_floors(config: BenchConfig, compute: Compute) -> Floors:
    """Return the bounds for `config`, whose model has a vocabulary size. Measures unknown peaks, for some seconds."""
    flops = flops_per_token(config.model) * config.training.batch_tokens
    traffic = step_traffic(
        config.model,
        compute.precision,
        config.micro_batch_size(),
        config.grad_accum(),
        config.optimizer.name,
        clipped=bool(config.optimizer.grad_clip),
        gpu=compute.device.type == "cuda",
    )
    products, memory = find_products_peak(compute), find_memory_peak(compute)
    kinds = [f"{field.name} {format_count(getattr(traffic, field.name), 'G')}B" for field in fields(traffic)]
    return Floors(
        products=flops / products.rate,
        memory=traffic.total / memory.rate,
        names=(
            f"floor by matrix products: {products.describe(flops, 'FLOP')}",
            f"floor by memory: {memory.describe(traffic.total, 'B')}",
            "of which are read and written",
        ),
        parts=", ".join(kinds),
    )


def find_products_peak(compute: Compute) -> Peak:
    """Return the peak of matrix products in the precision of `compute`."""
    known = peak_flops(compute.name, compute.precision)
    return Peak(known, "data sheet") if known else Peak(measure_flops(compute), "measured here")


def find_memory_peak(compute: Compute) -> Peak:
    """Return the peak of reads and writes of the device's memory."""
    known = peak_bandwidth(compute.name)
    return Peak(known, "data sheet") if known else Peak(measure_bandwidth(compute), "measured here")


def measure_flops(compute: Compute) -> float:
    """Return the FLOP/s of the fastest of the three products that train a linear layer, with square matrices.

    In half precision on a CPU they may differ by a factor of twenty.
    """
    return max(measure_products(compute, *flipped) for flipped in ((False, True), (False, False), (True, False)))


def measure_products(compute: Compute, flip_left: bool, flip_right: bool) -> float:
    """Return the highest FLOP/s over increasing sizes, up to the first slow one."""
    rates: list[float] = []
    dtype = DTYPES.get(compute.precision, torch.float32)
    for side in SIDES:
        a, b = torch.randn(2, side, side, device=compute.device).to(dtype)
        left, right = a.T if flip_left else a, b.T if flip_right else b
        seconds = time_fastest(compute, partial(torch.mm, left, right))
        rates.append(2 * side**3 / seconds)
        if seconds > SLOW:
            break
    return max(rates)


def measure_bandwidth(compute: Compute) -> float:
    """Return the bytes per second of a large copy, reads and writes together."""
    source = torch.ones(COPIED // 4, device=compute.device)
    target = torch.empty_like(source)
    return 2 * COPIED / time_fastest(compute, lambda: target.copy_(source))


def time_fastest(compute: Compute, work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several calls, after one as warm-up."""
    synchronize = choose_synchronize(compute.device)

    def run_once() -> None:
        work()
        synchronize()

    run_once()
    durations: list[float] = []
    while len(durations) < LEAST or sum(durations) < SECONDS:
        durations.append(time_call(run_once))
    return min(durations)
