"""Points that share a job of a real Slurm: each fails, finishes and is requeued by itself."""

import subprocess
from collections.abc import Generator

import pytest

from launch.slurm_sandbox.cluster import SandboxCluster
from launch.status import RunStatus
from tests.launch.jobs import Lab, describe, lab_on, result, starts

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
TWO = "hydra.launcher.points_per_job=2"


@pytest.fixture(scope="module")
def lab(cluster: SandboxCluster, tmp_path_factory: pytest.TempPathFactory) -> Generator[Lab, None, None]:
    with lab_on(cluster, tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def test_four_points_in_two_jobs_and_one_fails(lab: Lab) -> None:
    points = "sweep.points=[{training.seed:1},{model.vocab_size:20},{training.seed:2},{training.seed:3}]"
    code, output = lab.do(*lab.sweep("submitit_slurm", "name=packed", TWO, points, **{"training.steps": 100}))
    found = lab.points("packed")
    assert code == 3 and "2 points per job" in output, output
    jobs = {name: point.job.partition("_")[2] for name, point in found.items()}
    assert jobs == {"seed1": "0", "vocab_size20": "0", "seed2": "1", "seed3": "1"}
    assert [found[name].state for name in jobs] == ["finished", "failed", "finished", "finished"], describe(found)
    assert all(starts(found[name]) == 1 for name in ("seed1", "seed2", "seed3"))
    assert "model.vocab_size=20: the data needs" in found["vocab_size20"].why
    failed = found["vocab_size20"].log
    assert failed is not None and failed.name.endswith("_0_1_log.out") and "vocab_size=20" in failed.read_text()
    assert lab.do("launch", "retry", "packed", TWO)[0] == 0
    again = lab.wait("packed", lambda points: points["vocab_size20"].state == "failed")
    assert again["vocab_size20"].submission is not None and again["vocab_size20"].submission.number == 2


def has_ended(point: RunStatus) -> bool:
    """Return whether the job knows that the point's processes have ended, which is after its run is finished."""
    return point.submission is not None and point.submission.events(point.index)[-1]["event"] == "end"


def test_a_finished_point_is_not_run_again_when_the_job_is_requeued(lab: Lab) -> None:
    """The signal before a time limit comes after one of two points finished; ranks of one point are two processes."""
    long = {"training.steps": 1500, "eval.every": 750}
    words = ("hydra.launcher.wait=false", "hardware.devices=2")
    code, output = lab.do(*lab.sweep("submitit_slurm", "name=limit", TWO, *words, "training.steps=40,1500", **long))
    assert code == 0, output
    lab.wait_for_step("limit", "steps1500", 40)
    points = lab.wait("limit", lambda points: has_ended(points["steps40"]))
    assert points["steps1500"].state == "running", describe(points)
    subprocess.run(["scancel", "--signal=USR2", points["steps1500"].job], check=True)  # as before a time limit
    points = lab.wait_for("limit", "finished", "failed", "lost")
    assert [points[name].state for name in ("steps40", "steps1500")] == ["finished", "finished"], describe(points)
    assert [starts(points[name]) for name in ("steps40", "steps1500")] == [1, 2]
    assert [points[name].restarts for name in ("steps40", "steps1500")] == [0, 1]
    alone = ("name=alone", "hardware.devices=2", "training.steps=1500")
    code, output = lab.do(*lab.sweep("submitit_slurm", *alone, **long))
    assert code == 0, output
    assert result(lab.points("alone")["base"]) == result(points["steps1500"])


def test_points_that_share_a_job_are_cancelled_together(lab: Lab) -> None:
    words = ("name=shared", TWO, "training.seed=1,2", "hydra.launcher.wait=false")
    assert lab.do(*lab.sweep("submitit_slurm", *words, **{"training.steps": 3000, "eval.every": 1500}))[0] == 0
    point = lab.wait_for_step("shared", "seed1", 20)
    code, output = lab.do("launch", "cancel", f"shared/{point.path.name}")
    assert code == 2 and f"shares job {point.job} with seed2-" in output and "stops all" in output, output
    code, output = lab.do("launch", "cancel", "shared")
    assert code == 0 and "2 cancelled" in output, output
    points = lab.wait_for("shared", "cancelled")
    assert {point.restarts for point in points.values()} == {0}
