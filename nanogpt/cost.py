"""Cost of runs: hours of devices, energy and money, predicted or from the records of all their starts."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nanogpt.config import CostConfig, TrainConfig
from nanogpt.estimates.gpu_specs import GPU_SPECS
from nanogpt.files import read_json_object
from nanogpt.metrics_file import as_count, as_number, read_rows

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Cost:
    """Hours of devices, energy and money. None: not known."""

    gpu_hours: float | None = 0.0
    cpu_hours: float | None = 0.0
    """Hours of ranks on CPUs."""
    energy_kwh: float | None = 0.0
    money: float | None = 0.0
    currency: str | None = None

    def describe(self) -> str:
        """Return what is known, e.g. `1.5 GPU-hours, 0.9 kWh, 5.25 USD`; empty if nothing is."""
        amounts = [(self.gpu_hours, "GPU-hours"), (self.cpu_hours, "CPU-hours"), (self.energy_kwh, "kWh")]
        words = [
            f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}" for amount, unit in amounts if amount
        ]
        return ", ".join([*words, *([self.price] if self.currency and self.money is not None else [])])

    @property
    def price(self) -> str:
        """The money as text, `-` if not known."""
        if self.money is None:
            return "-"
        return f"{self.money:{',.2f' if self.money >= 1 else '.2g'}} {self.currency or ''}".rstrip()


def add_costs(costs: Iterable[Cost]) -> Cost:
    """Return the sum; a part is not known if it isn't for one of them, nor is money in several currencies."""
    found = list(costs)
    parts = [(c.gpu_hours, c.cpu_hours, c.energy_kwh, c.money) for c in found] or [(0.0, 0.0, 0.0, 0.0)]
    gpu, cpu, energy, money = (sum(known) if None not in (known := part) else None for part in zip(*parts, strict=True))
    currencies = {cost.currency for cost in found if cost.currency}
    return Cost(gpu, cpu, energy, money if len(currencies) < 2 else None, next(iter(currencies), None))


def compute_cost(
    seconds: float | None, ranks: int, device: str, name: str, prices: CostConfig, joules: float | None = None
) -> Cost:
    """Return the cost of `ranks` devices for some time. `name` is a key of GPU_SPECS, or torch's name of the GPU."""
    gpu = device != "cpu"
    hours = None if seconds is None else seconds * ranks / 3600
    price = find_price(prices.prices or {}, gpu, name)
    return Cost(
        gpu_hours=hours if gpu else 0.0,
        cpu_hours=0.0 if gpu else hours,
        energy_kwh=None if joules is None else joules / JOULES_PER_KWH,
        money=None if hours is None or price is None else hours * price,
        currency=None if price is None else prices.currency,
    )


def find_price(prices: Mapping[str, float], gpu: bool, name: str) -> float | None:
    """Return the price of an hour of a device; None if it has none."""
    if not gpu:
        return prices.get("cpu")
    torch_name = name.removeprefix("NVIDIA ")
    model = next((key for key, spec in GPU_SPECS.items() if name == key or re.fullmatch(spec.pattern, torch_name)), "")
    return prices.get(model, prices.get("gpu"))


def choose_prices(prices: CostConfig | None, config: TrainConfig) -> CostConfig:
    """Return the prices to use for a run: those given, else those in its config."""
    return prices if prices is not None and prices.prices else config.cost


def read_cost(
    status: Mapping[str, Any],
    starts: Sequence[Mapping[str, Any]],
    timing: Sequence[Mapping[str, float]],
    prices: CostConfig,
) -> Cost:
    """Return the cost of all starts of a run, those included whose work was lost.

    A start occupies its devices from opening the run directory to its last record: the later of status.json and the
    last row of timing.jsonl. The next start keeps that time in provenance.json before it drops rows; a start of earlier
    versions, which did not, counts until the last of its rows that is left. Models that were trained as one network
    share the cost of their time.
    """
    began = [start_time(start) for start in starts]
    records = [*(start.get("previous_start") for start in starts[1:]), status]
    costs: list[Cost] = []
    for start, begin, limit, record in zip(starts, began, [*began[1:], None], records, strict=False):
        facts, end = as_object(start.get("arithmetic")), as_object(record)
        models = as_count(end.get("models_at_once")) or 1
        known = [time for time in known_times(end, timing) if begin is not None and begin <= time <= (limit or time)]
        ranks = as_count(facts.get("ranks"))
        seconds = (max(known) - begin) / models if known and begin is not None and ranks else None
        joules = as_number(end.get("joules"))
        device, name = str(facts.get("device")), str(start.get("device"))
        costs.append(
            compute_cost(seconds, ranks or 1, device, name, prices, None if joules is None else joules / models)
        )
    return add_costs(costs)


def known_times(record: Mapping[str, Any], timing: Sequence[Mapping[str, float]]) -> list[float]:
    """Return when a record of a start was written, and the rows of timing.jsonl."""
    found = (as_number(record.get("active_unix_s")), *(row.get("time") for row in timing))
    return [time for time in found if time is not None]


def as_object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}  # pyright: ignore[reportUnknownVariableType]


def start_time(start: Mapping[str, Any]) -> float | None:
    """Return when a start opened its run directory, or, in records of earlier versions, when it began to log."""
    if (exact := as_number(start.get("start_unix_s"))) is not None:
        return exact
    with suppress(ValueError, OverflowError):
        return datetime.strptime(str(start.get("time")), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    return None


def find_last_record(path: Path) -> dict[str, float | None]:
    """Return when a run last recorded anything, and the energy of its last start, before a new one drops rows."""
    status = read_json_object(path / "status.json")
    known = known_times(status, read_rows(path / "timing.jsonl")[-1:])
    models = as_count(status.get("models_at_once"))
    shared = {"models_at_once": models} if models else {}
    return {"active_unix_s": max(known, default=None), "joules": as_number(status.get("joules"))} | shared
