"""What a training step takes at least on a device: its matrix products, and what has to cross the device's memory.

The device's peaks are those of its data sheet (nanogpt/estimates/gpu_specs.py); else they are measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch

from nanogpt.benchmark.timing import choose_synchronize, format_digits, time_call
from nanogpt.config import BenchConfig
from nanogpt.console import format_count
from nanogpt.device import DTYPES, Compute
from nanogpt.estimates.flops import flops_per_token
from nanogpt.estimates.gpu_specs import peak_bandwidth, peak_flops
from nanogpt.estimates.memory_traffic import step_traffic

SIDES = (256, 512, 1024, 2048)  # of the square matrices whose product is timed
SLOW = 0.05  # seconds of a product from which no larger one is tried
COPIED = 2**28  # bytes, more than caches hold
SECONDS, LEAST = 0.1, 3  # how long and how often something is tried; the fastest counts


@dataclass(frozen=True)
class Peak:
    """The most of something that a device does in a second."""

    rate: float
    """FLOP/s or bytes/s."""
    source: str

    def describe(self, number: float, unit: str) -> str:
        return f"{format_count(number, 'G')}{unit} at {format_count(self.rate, 'G')}{unit}/s ({self.source})"


@dataclass(frozen=True)
class Floors:
    """Seconds that a step takes at least, as cost.py and traffic.py in nanogpt/model count, and how they come about."""

    products: float
    memory: float
    names: tuple[str, str, str]
    """Of the three rows of a table: products, memory, and of what the latter is made."""
    parts: str
    """Bytes by kind."""

    def rows(self, *steps: float) -> list[tuple[str, ...]]:
        """The floors and how many times as long measured steps take, in seconds. The first is this program's: another
        makes the same products, but what it keeps in memory is its own affair.
        """
        products = [
            f"{format_ms(self.products)}; the step takes {format_digits(step / self.products)} x" for step in steps
        ]
        memory = f"{format_ms(self.memory)}; the step takes {format_digits(steps[0] / self.memory)} x"
        empty = ("",) * (len(steps) - 1)
        return [
            (self.names[0], *products),
            (self.names[1], memory, *empty),
            (self.names[2], self.parts, *empty),
        ]


def compute_floors(config: BenchConfig, compute: Compute) -> Floors:
    """Of a step of `config`, whose model has its vocabulary. Takes some seconds where a peak isn't known."""
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
    products, memory = products_peak(compute), memory_peak(compute)
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


def format_ms(seconds: float) -> str:
    return f"{format_digits(1e3 * seconds)} ms"


def products_peak(compute: Compute) -> Peak:
    """Of matrix products in this precision."""
    known = peak_flops(compute.name, compute.precision)
    return Peak(known, "data sheet") if known else Peak(measure_flops(compute), "measured here")


def memory_peak(compute: Compute) -> Peak:
    """Of reading and writing the device's memory."""
    known = peak_bandwidth(compute.name)
    return Peak(known, "data sheet") if known else Peak(measure_bandwidth(compute), "measured here")


def measure_flops(compute: Compute) -> float:
    """FLOP/s of products of square matrices: the fastest of the three that train a linear layer, for in half precision
    a CPU may be twenty times as fast at one as at another.
    """
    return max(measure_products(compute, *flipped) for flipped in ((False, True), (False, False), (True, False)))


def measure_products(compute: Compute, flip_left: bool, flip_right: bool) -> float:
    """FLOP/s with one of the matrices transposed, or none: the highest of growing sizes, until one is slow."""
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
    """Bytes/s of a large copy, each byte read and written."""
    source = torch.ones(COPIED // 4, device=compute.device)
    target = torch.empty_like(source)
    return 2 * COPIED / time_fastest(compute, lambda: target.copy_(source))


def time_fastest(compute: Compute, work: Callable[[], object]) -> float:
    """Seconds of the fastest of several times, after one to warm up."""
    synchronize = choose_synchronize(compute.device)

    def run_once() -> None:
        work()
        synchronize()

    run_once()
    durations: list[float] = []
    while len(durations) < LEAST or sum(durations) < SECONDS:
        durations.append(time_call(run_once))
    return min(durations)
