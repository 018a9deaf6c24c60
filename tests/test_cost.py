"""Cost of runs: all starts count, with lost work; prices; what is not known stays unknown."""

import ctypes
import json
import time
from pathlib import Path
from typing import Any

import pytest

from nanogpt.config import CostConfig, TrainConfig
from nanogpt.cost import Cost, add_costs, compute_cost, find_price, read_cost
from nanogpt.cuda_driver import read_energy
from nanogpt.errors import BadInput
from nanogpt.estimates.gpu_specs import GPU_SPECS
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.schema import from_dict
from tests import ranks
from tests.ranks import Fault
from tests.tiny_config import tiny_config, write_corpus

NONE = CostConfig()
PRICES = CostConfig(prices={"h200": 3.5, "gpu": 2.0, "cpu": 0.02}, currency="EUR")


def start(begin: float, device: str = "cuda", ranks: int | None = 8, **more: object) -> dict[str, Any]:
    arithmetic = {"device": device, "ranks": ranks}
    return {"start_unix_s": begin, "device": "NVIDIA H200", "arithmetic": arithmetic} | more


def test_starts_last_until_their_last_record() -> None:
    """1,800 s on 8 GPUs, of which the last record is a row that the second start dropped, then 900 s on 4."""
    lost = {"active_unix_s": 2800.0, "joules": 3.6e6}
    starts = [start(1000.0), start(10_000.0, ranks=4, previous_start=lost)]
    status = {"active_unix_s": 10_800.0, "joules": 1.8e6}
    cost = read_cost(status, starts, [{"step": 1, "time": 1100.0}, {"step": 9, "time": 10_900.0}], PRICES)
    assert cost == Cost(gpu_hours=4.0 + 1.0, cpu_hours=0.0, energy_kwh=1.5, money=5 * 3.5, currency="EUR")
    assert cost.describe() == "5 GPU-hours, 1.5 kWh, 17.50 EUR"
    assert add_costs([cost, cost]) == Cost(10.0, 0.0, 3.0, 35.0, "EUR")


def test_models_of_one_network_share_its_cost() -> None:
    """The first start alone, the second with three others."""
    shared = {"active_unix_s": 10_800.0, "joules": 1.8e6, "models_at_once": 4}
    starts = [start(1000.0, ranks=1), start(10_000.0, ranks=1, previous_start={"active_unix_s": 1360.0, "joules": 0.0})]
    cost = read_cost(shared, starts, [], PRICES)
    assert cost.gpu_hours == pytest.approx(0.1 + 800 / 3600 / 4) and cost.energy_kwh == pytest.approx(0.5 / 4)
    starts = [start(1000.0, ranks=1), start(20_000.0, ranks=1, previous_start=shared)]
    assert read_cost({"active_unix_s": 20_360.0}, starts, [], PRICES).gpu_hours == pytest.approx(9800 / 3600 / 4 + 0.1)


def test_records_of_earlier_versions_count_as_far_as_they_go() -> None:
    zone = time.strftime("%z")
    begin = time.mktime(time.strptime("2026-01-02T10:00:00", "%Y-%m-%dT%H:%M:%S"))
    starts = [{"time": f"2026-01-02T10:0{i}:00{zone}", "arithmetic": {"device": "cpu", "ranks": 2}} for i in (0, 5)]
    rows = [{"step": i, "time": begin + seconds} for i, seconds in enumerate((36, 72, 300 + 108))]
    cost = read_cost({"updated": begin + 9999}, starts, rows, PRICES)
    assert (cost.gpu_hours, cost.energy_kwh, cost.currency) == (0.0, None, "EUR")
    assert cost.cpu_hours == pytest.approx((72 + 108) * 2 / 3600) and cost.money == pytest.approx(0.02 * 0.1)
    assert read_cost({}, starts, rows[:2], PRICES).cpu_hours is None  # the second start left nothing


@pytest.mark.parametrize(
    "starts",
    [
        [{"time": "yesterday", "arithmetic": {"device": "cuda", "ranks": 1}}],
        [start(1000.0, ranks=None)],
        [start(1000.0), start(5000.0, previous_start={"active_unix_s": None})],
        [start(1000.0), start(5000.0, previous_start="gone")],
        [{"arithmetic": 3, "time": None}],
    ],
)
def test_what_nobody_recorded_is_unknown(starts: list[dict[str, Any]]) -> None:
    cost = read_cost({"active_unix_s": 6000.0}, starts, [], PRICES)
    assert (cost.gpu_hours, cost.money, cost.energy_kwh) == (None, None, None)
    whole = add_costs([cost, compute_cost(3600.0, 1, "cuda", "NVIDIA H200", PRICES, 1.0)])
    assert whole.gpu_hours is None and whole.money is None and whole.energy_kwh is None


def test_prices() -> None:
    prices = PRICES.prices or {}
    assert find_price(prices, True, "NVIDIA H200") == find_price(prices, True, "h200") == 3.5
    assert find_price(prices, True, "NVIDIA H100 80GB HBM3") == find_price(prices, True, "a card") == 2.0
    assert find_price({"h200": 3.5}, True, "NVIDIA A100-SXM4-80GB") is None and find_price({}, False, "x") is None
    assert {find_price({name: 7.0}, True, name) for name in GPU_SPECS} == {7.0}
    assert compute_cost(3600.0, 2, "cpu", "AMD", NONE) == Cost(0.0, 2.0, None, None, None)
    other = compute_cost(3600.0, 1, "cpu", "", CostConfig(prices={"cpu": 1.0}, currency="USD"))
    assert add_costs([other, compute_cost(3600.0, 1, "cpu", "", PRICES)]).money is None  # two currencies
    assert add_costs([]) == Cost(0.0, 0.0, 0.0, 0.0, None) and add_costs([]).describe() == ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prices": {"h20": 1.0}}, "h20 is none; did you mean 'h200'?"),
        ({"prices": {"cpu": -1}}, "cost.prices=-1: out of range; allowed: {device: price}, none negative or null"),
        ({"prices": 3}, "cost.prices=3: keys with values are needed"),
        ({"currency": "US dollars"}, "cost.currency=US dollars: not a choice; allowed: a name, e.g. EUR"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        from_dict(TrainConfig, {"training": {"steps": 1}, "cost": values})
    assert message in str(refused.value)


def test_a_run_that_was_killed_cost_what_it_lost_too(tmp_path: Path) -> None:
    """The first start trains for a second and is killed without a checkpoint; its rows are dropped by the second."""
    config = tiny_config(tmp_path, write_corpus(tmp_path / "corpus.txt"), **{"tracking.log_every": 1, "eval.every": 20})
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every": 1000})})
    begin = time.time()
    faults = [Fault("nanogpt.training.loop.train_step", n, a) for n, a in ((4, "sleep 1"), (8, "SIGKILL"))]
    assert ranks.run(config, 1, faults)[0] == [-9]
    assert ranks.run(config)[0] == [0]
    wall = time.time() - begin
    run = RunDirectory(locate_run(config))
    starts = run.read_starts()
    assert [begun["from_step"] for begun in starts] == [0, 0] and "previous_start" not in starts[0]
    lost = starts[1]["previous_start"]["active_unix_s"] - starts[0]["start_unix_s"]
    rows = [json.loads(line) for line in (run.path / "timing.jsonl").read_text().splitlines()]
    cost = read_cost(run.read_status(), starts, rows, CostConfig(prices={"cpu": 3600.0}))
    last = max(run.read_status()["active_unix_s"], rows[-1]["time"]) - starts[1]["start_unix_s"]
    assert cost.money == pytest.approx(lost + last) and 1.0 <= lost < lost + last <= wall
    assert cost.energy_kwh is None and cost.gpu_hours == 0.0
    again = run.read_status()
    assert ranks.run(config)[0] == [0] and run.read_status() == again  # finished already: costs nothing more


class FakeNvml:
    """NVML with one GPU that has used 5 kJ."""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, _: object) -> int:
        return 0 if uuid == b"GPU-abc" else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, _: object, total: Any) -> int:
        total._obj.value = 5_000_000
        return 0


def test_energy_is_read_from_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> FakeNvml:
        assert name == "libnvidia-ml.so.1"
        return FakeNvml()

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert read_energy("abc") == 5000.0 and read_energy("MIG-abc") is None
    monkeypatch.undo()
    if not Path("/proc/driver/nvidia").exists():
        assert read_energy("abc") is None
