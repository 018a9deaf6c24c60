"""Several nodes: the curve of one process, and faults of single ranks and nodes, on a real cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from launch.slurm_sandbox.cluster import SandboxCluster
from launch.status import RunStatus
from nanogpt.metrics_file import read_rows
from tests.conftest import ROOT
from tests.launch.jobs import Lab, describe, lab_on, result, starts
from tests.launch.test_slurm import slurm, submit

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
RANKS = ("hardware.nodes=2", "hardware.devices=2", "hardware.timeout=10")


@pytest.fixture(scope="module")
def lab(cluster: SandboxCluster, tmp_path_factory: pytest.TempPathFactory) -> Generator[Lab, None, None]:
    with lab_on(cluster, tmp_path_factory.mktemp("ranks")) as lab:
        yield lab


@pytest.fixture(scope="module")
def undisturbed(lab: Lab) -> RunStatus:
    """Four ranks on two nodes to which nothing happens."""
    submit(lab, "four", *RANKS)
    return lab.wait_for("four", "finished", "failed", "lost")["base"]


def ranks_of(point: RunStatus) -> list[int]:
    """Process ids of the ranks, in the order in which they were started."""
    assert point.submission is not None
    found = slurm("pgrep", "-f", f"launch.job task {point.submission.path.absolute()}").split()
    return [int(pid) for pid in found if Path(f"/proc/{pid}/comm").read_text().startswith("python")]


def test_two_nodes_give_the_curve_of_one_process(lab: Lab, undisturbed: RunStatus) -> None:
    assert undisturbed.state == "finished", describe({"four": undisturbed})
    submit(lab, "alone")
    alone = read_rows(lab.wait_for("alone", "finished")["base"].path / "metrics.jsonl")
    together = read_rows(undisturbed.path / "metrics.jsonl")
    assert len(alone) == len(together)
    for one, other in zip(alone[:60], together[:60], strict=True):
        assert one == pytest.approx(other, abs=2e-5)
    assert undisturbed.submission is not None
    logs = [undisturbed.submission.log(0, rank) for rank in range(4)]
    assert all(log and "=== attempt 0" in log.read_text() for log in logs)


@pytest.mark.parametrize("fault", ["killed", "hangs", "stopped"])
def test_a_fault_of_one_rank(fault: str, lab: Lab, undisturbed: RunStatus) -> None:
    """A rank that is dead, stuck or asked to stop ends all ranks; the job is requeued and ends bit for bit the same."""
    submit(lab, fault, *RANKS)
    pids = ranks_of(lab.wait_for_step(fault, "base", 40))
    assert len(pids) == 4
    number = {"killed": signal.SIGKILL, "hangs": signal.SIGSTOP, "stopped": signal.SIGTERM}[fault]
    os.kill(pids[-1], number)
    point = lab.wait_for(fault, "finished", "failed", "lost")["base"]
    assert point.state == "finished" and point.restarts == 1, describe({fault: point})
    assert result(point) == result(undisturbed)


def test_a_node_that_fails(lab: Lab, undisturbed: RunStatus, cluster: SandboxCluster) -> None:
    """Slurm requeues the job by itself, and it continues when there are two nodes again."""
    submit(lab, "node", *RANKS)
    lab.wait_for_step("node", "base", 40)
    cluster.fail_node("n2")
    try:
        lab.wait("node", lambda points: points["base"].state == "queued")
    finally:
        cluster.restore_node("n2")
    point = lab.wait_for("node", "finished", "failed", "lost")["base"]
    assert point.state == "finished" and starts(point) == 2, describe({"node": point})
    assert result(point) == result(undisturbed)


def test_srun_by_hand(lab: Lab, undisturbed: RunStatus) -> None:
    """Ranks that srun starts from a script of one's own find each other; evaluation is the same on four as on one."""
    words = [str(ROOT / "evaluate.py"), f"run={undisturbed.path}", "eval=loss", "device=cpu"]
    for start in ([], ["srun", "-N2", "-n4"]):
        command = [*start, sys.executable, *words, f"out={lab.folder}/found.jsonl"]
        done = subprocess.run(command, cwd=lab.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    alone, four = [json.loads(line) for line in (lab.folder / "found.jsonl").read_text().splitlines()]
    assert alone["metrics"] == four["metrics"]


def test_a_sweep_inside_srun_is_refused(lab: Lab) -> None:
    command = ["srun", "-n2", *lab.command(*lab.sweep("submitit_slurm", "name=twice"))]
    done = subprocess.run(command, cwd=lab.folder, capture_output=True, text=True)
    assert done.returncode == 2 and "every rank would submit the sweep" in done.stderr
    assert not lab.study("twice").exists()
