"""Threads of a rank, on machines made of files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanogpt import cpu_threads
from nanogpt.cpu_threads import SPIN_COUNT, Threads, choose_threads, limit_spinning

ROOT = Path(__file__).parents[1]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen CPUs on eight cores, CPU n and n + 8 being one, all allowed and unlimited."""
    for cpu in range(16):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 8},{cpu % 8 + 8}\n")
    (tmp_path / "membership").write_text("0::/job/step\n")
    (tmp_path / "groups/job/step").mkdir(parents=True)
    monkeypatch.setattr(cpu_threads, "CPUS", tmp_path)
    monkeypatch.setattr(cpu_threads, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(cpu_threads, "MEMBERSHIP", tmp_path / "membership")
    allow(monkeypatch, range(16))
    return tmp_path


def allow(monkeypatch: pytest.MonkeyPatch, cpus: "range | set[int]") -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cpus), raising=False)


TASK = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("environment", "ranks", "expected"),
    [
        ({}, 1, Threads(8, "physical cores")),
        ({}, 3, Threads(2, "8 physical cores, shared by 3 ranks")),
        ({}, 32, Threads(1, "8 physical cores, shared by 32 ranks")),
        ({"OMP_NUM_THREADS": "3"}, 4, Threads(3, "OMP_NUM_THREADS")),
        ({"OMP_NUM_THREADS": "5,2"}, 1, Threads(5, "OMP_NUM_THREADS")),
        ({"OMP_NUM_THREADS": "many"}, 1, Threads(8, "physical cores")),
        ({"SLURM_CPUS_PER_TASK": "6"}, 1, Threads(6, "SLURM_CPUS_PER_TASK")),
        ({"SLURM_CPUS_PER_TASK": "6"}, 2, Threads(3, "6 SLURM_CPUS_PER_TASK, shared by 2 ranks")),
        ({"SLURM_CPUS_PER_TASK": "4", **TASK}, 4, Threads(4, "SLURM_CPUS_PER_TASK")),
        (TASK, 4, Threads(2, "8 physical cores, shared by 4 ranks")),
    ],
)
def test_threads(machine: Path, environment: dict[str, str], ranks: int, expected: Threads) -> None:
    assert choose_threads(environment, ranks) == expected


def test_only_cores_that_may_be_used_count(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, {0, 8, 1, 2})
    assert choose_threads({}) == Threads(3, "physical cores")
    allow(monkeypatch, {0, 1, 2})
    assert choose_threads({}) == Threads(3, "cores")
    allow(monkeypatch, {0, 8})  # Slurm bound the task to its own core
    assert choose_threads({"SLURM_CPUS_PER_TASK": "2", **TASK}, 4) == Threads(1, "physical cores")


@pytest.mark.parametrize(
    ("own", "parent", "expected"), [("max", "350000", 3), ("250000", "400000", 2), ("9999", "max", 1)]
)
def test_a_container_is_limited(machine: Path, own: str, parent: str, expected: int) -> None:
    (machine / "groups/job/step/cpu.max").write_text(f"{own} 100000\n")
    (machine / "groups/job/cpu.max").write_text(f"{parent} 100000\n")
    assert choose_threads({}) == Threads(expected, "the container's limit")


def test_a_container_of_the_older_kind(machine: Path) -> None:
    (machine / "groups/cpu").mkdir()
    (machine / "groups/cpu/cpu.cfs_period_us").write_text("100000\n")
    for quota, expected in (("-1", 8), ("400000", 4)):
        (machine / "groups/cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
        found = choose_threads({})
        assert found is not None and found.number == expected


def test_a_system_that_tells_nothing(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert choose_threads({}) is None


def test_waiting_threads_spin_briefly_unless_the_user_says_otherwise() -> None:
    environment: dict[str, str] = {}
    limit_spinning(environment)
    assert environment == {"GOMP_SPINCOUNT": SPIN_COUNT}
    for own in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}):
        environment = dict(own)
        limit_spinning(environment)
        assert environment == own


def test_spinning_is_limited_before_torch_loads() -> None:
    """GNU OpenMP reads the variable once, when torch loads it."""
    code = (
        "import os, sys; from cli import entry; assert 'torch' not in sys.modules; "
        "entry.exit_on_error('test', lambda: print(os.environ['GOMP_SPINCOUNT']) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{SPIN_COUNT}\n"), done.stderr
