"""An asynchronous search on a real Slurm: two slots, and a job that runs the search and is requeued in between."""

import json
import subprocess
import time
from collections.abc import Generator

import pytest

from launch.driver import read_driver
from launch.slurm_sandbox.cluster import SandboxCluster
from tests.launch.jobs import Lab, describe, lab_on
from tests.ranks import HANG

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def lab(cluster: SandboxCluster, tmp_path_factory: pytest.TempPathFactory) -> Generator[Lab, None, None]:
    with lab_on(cluster, tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def test_a_search_as_a_job(lab: Lab) -> None:
    words = ("name=asha", "hydra/sweeper=asha", "hydra.sweeper.slots=2", "hydra.sweeper.rungs=2")
    command = lab.sweep("submitit_slurm", *words, "optimizer.lr=1e-4,1e-3,1e-2", **{"training.steps": 60})
    code, output = lab.do(*command, "hydra.launcher.wait=false")
    assert code == 0 and "search  run by job" in output, output
    driver = read_driver(lab.study("asha"))
    assert driver is not None
    lab.wait_for_step("asha", "lr0.0001", 10)
    code, output = lab.do("launch", "status", "asha")
    assert code == 0 and f"search  running, job {driver.job}" in output, output
    code, output = lab.do(*command)
    assert code == 6 or "another process runs this search" in output, output
    subprocess.run(["scontrol", "requeue", driver.job], check=True)
    record, limit = lab.study("asha") / "rungs.jsonl", time.monotonic() + HANG
    while driver.state != "ended":
        assert time.monotonic() < limit, describe(lab.points("asha"))
        time.sleep(0.5)
    code, output = lab.do("launch", "wait", "asha")
    assert code == 0 and "search  exit code 0; log: " in output, output
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    starts = [row["start"] for row in rows if "start" in row]
    points = lab.points("asha")
    assert points["lr0.01"].state == "finished" and len(starts) == len(set(starts)), describe(points)
    assert max(in_progress(rows)) == 2
    before = record.read_text()
    code, output = lab.do(*command)
    assert code == 0 and "best    lr0.01-" in output and record.read_text() == before, output


def in_progress(rows: list[dict[str, object]]) -> list[int]:
    """Return how many runs are in progress after each line of the record."""
    counts = [0]
    for row in rows:
        counts.append(counts[-1] + (1 if "start" in row else -1))
    return counts
