"""Disturbances by a real cluster, none of which changes the result: weights and metrics are bit for bit equal.

One undisturbed run is the measure of all; the others, of the same config, are disturbed side by side.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from launch.slurm_sandbox.cluster import SandboxCluster
from launch.status import RunStatus
from tests.launch.jobs import Lab, describe, lab_on, result, starts

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def slurm(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def array(point: RunStatus) -> str:
    return point.job.partition("_")[0]


def rank_of(point: RunStatus) -> int:
    """Process id of a rank of a point, found as no other program would name it."""
    assert point.submission is not None
    found = slurm("pgrep", "-f", f"launch.job task {point.submission.path.absolute()}").split()
    parents = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in found}
    return next(int(pid) for pid, name in parents.items() if name.startswith("python"))


DISTURBANCES: dict[str, Callable[[RunStatus], object]] = {
    "usr2": lambda point: slurm("scancel", "--signal=USR2", array(point)),  # as before a time limit
    "term": lambda point: slurm("scancel", "--signal=TERM", array(point)),  # as at the begin of a grace period
    "full": lambda point: slurm("scancel", "--full", "--signal=USR2", array(point)),  # to the batch script too
    "requeue": lambda point: slurm("scontrol", "requeue", array(point)),
    "killed": lambda point: os.kill(rank_of(point), signal.SIGKILL),
}


@pytest.fixture(scope="module")
def lab(cluster: SandboxCluster, tmp_path_factory: pytest.TempPathFactory) -> Generator[Lab, None, None]:
    with lab_on(cluster, tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def submit(lab: Lab, name: str, *words: str, **changes: object) -> None:
    """Submit a study of one point, without waiting for it."""
    words = ("hydra.launcher.wait=false", f"name={name}", *words)
    code, output = lab.do(*lab.sweep("submitit_slurm", *words, **changes))
    assert code == 0, output


@pytest.fixture(scope="module")
def reference(lab: Lab) -> dict[str, str]:
    """Return the result of an undisturbed run."""
    submit(lab, "reference")
    point = lab.wait_for("reference", "finished")["base"]
    assert starts(point) == 1
    return result(point)


@pytest.fixture(scope="module")
def disturbed(lab: Lab, reference: dict[str, str]) -> Generator[dict[str, RunStatus], None, None]:
    """Run it once for each disturbance, which comes some seconds after the start."""
    for name in DISTURBANCES:
        submit(lab, name)
    for name, disturb in DISTURBANCES.items():
        disturb(lab.wait_for_step(name, "base", 40))
    yield {name: lab.wait_for(name, "finished", "failed", "lost")["base"] for name in DISTURBANCES}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_disturbed_run_ends_as_if_nothing_had_happened(
    name: str, disturbed: dict[str, RunStatus], reference: dict[str, str]
) -> None:
    point = disturbed[name]
    assert point.state == "finished", describe({name: point})
    assert result(point) == reference
    assert starts(point) == 2 and point.restarts == 1


def test_an_element_of_an_array_is_put_back_alone(lab: Lab) -> None:
    """The last point has the job id of the whole array; the others were cancelled or are done."""
    words = lab.sweep("submitit_slurm", "name=array", "training.seed=1,2,3", "hydra.launcher.wait=false")
    code, output = lab.do(*words, "hydra.launcher.max_requeues=5")
    assert code == 0, output
    job = array(lab.wait_for_step("array", "seed1", 20))
    slurm("scancel", f"{job}_0")
    lab.wait_for_step("array", "seed3", 20)
    slurm("scancel", "--signal=USR2", f"{job}_2")
    points = lab.wait_for("array", "finished", "failed", "lost", "cancelled")
    states = {name: (point.state, point.restarts) for name, point in points.items()}
    assert states == {"seed1": ("cancelled", 0), "seed2": ("finished", 0), "seed3": ("finished", 1)}, describe(points)


def test_a_signal_while_python_starts_costs_a_restart(lab: Lab, reference: dict[str, str]) -> None:
    submit(lab, "early")
    point = lab.wait("early", lambda points: points["base"].state == "running")["base"]
    for _ in range(100):  # before the ranks can have a handler
        try:
            os.kill(rank_of(point), signal.SIGUSR2)
            break
        except (subprocess.CalledProcessError, StopIteration, ProcessLookupError, FileNotFoundError):
            time.sleep(0.05)
    point = lab.wait_for("early", "finished", "failed", "lost")["base"]
    assert point.state == "finished" and point.restarts == 1, describe({"early": point})
    assert result(point) == reference


@pytest.mark.parametrize("partition", ["dev", "scavenge"])
def test_preempted_with_and_without_grace(
    partition: str, lab: Lab, reference: dict[str, str], cluster: SandboxCluster
) -> None:
    name = f"preempted-{partition}"
    submit(lab, name, f"hydra.launcher.partition={partition}")
    lab.wait_for_step(name, "base", 40)
    other = slurm("sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-t2", "-o/dev/null", "--wrap", "sleep 1")
    point = lab.wait_for(name, "finished", "failed", "lost", "cancelled")["base"]
    assert point.state == "finished" and point.restarts == 1, describe({name: point})
    assert result(point) == reference
    assert slurm("squeue", "-h", "-t", "all", "-j", other.strip(), "-o", "%T").strip() in ("COMPLETED", "COMPLETING")


def test_cancelled_stays_cancelled_until_the_same_command(lab: Lab, reference: dict[str, str]) -> None:
    """With scancel, which leaves no record, and with nanogpt cancel."""
    for name in ("scancelled", "cancelled"):
        submit(lab, name)
    slurm("scancel", array(lab.wait_for_step("scancelled", "base", 40)))
    lab.wait_for_step("cancelled", "base", 40)
    code, output = lab.do("launch", "cancel", "cancelled")
    assert code == 0 and "1 cancelled" in output
    time.sleep(20)  # long enough for a requeue
    for name in ("scancelled", "cancelled"):
        point = lab.points(name)["base"]
        assert point.state == "cancelled" and point.step < 500, describe({name: point})
        submit(lab, name)
        point = lab.wait_for(name, "finished")["base"]
        assert result(point) == reference and starts(point) == 2


def test_failures_that_come_again_end(lab: Lab) -> None:
    """Killed at each start: without a new checkpoint three restarts are made, and never more than max_requeues."""
    for name, limit in (
        ("fruitless", "hydra.launcher.max_restarts_without_progress=2"),
        ("limited", "hydra.launcher.max_requeues=1"),
    ):
        killer = f"(sleep 1; while ! pkill -9 -f 'launch.job task {lab.study(name)}/'; do sleep 0.1; done) &"
        submit(lab, name, limit, f'hydra.launcher.setup=["{killer}"]')
    points = {name: lab.wait_for(name, "failed", "lost")["base"] for name in ("fruitless", "limited")}
    assert points["fruitless"].restarts == 2 and "no new checkpoint in 3 attempts" in points["fruitless"].why
    assert points["limited"].restarts == 1 and "max_requeues" in points["limited"].why
    assert "killed by SIGKILL" in points["limited"].why


def test_a_failing_point_does_not_take_the_others_along(lab: Lab) -> None:
    """The table says why, the exit code is the failed point's, and only `retry` submits it again."""
    words = lab.sweep(
        "submitit_slurm", "name=mixed", "training.steps=60", "training.seed=1,2", "model.vocab_size=null,20"
    )
    code, output = lab.do(*words)
    points = lab.points("mixed")
    assert {name: point.state for name, point in points.items()} == {
        "seed1-vocab_sizenull": "finished",
        "seed1-vocab_size20": "failed",
        "seed2-vocab_sizenull": "finished",
        "seed2-vocab_size20": "failed",
    }, output + describe(points)
    assert code == 3 and "model.vocab_size=20: the data needs at least" in output
    code, output = lab.do(*words)
    assert code == 3 and "0 to submit (2 failed, 2 finished)" in output and "nanogpt retry" in output
    code, output = lab.do("launch", "retry", "mixed", "hydra.launcher.timeout_min=7")
    assert code == 0 and "2 points submitted" in output
    numbers = {name: point.submission.number for name, point in lab.points("mixed").items() if point.submission}
    assert sorted(numbers.values()) == [1, 1, 2, 2]
    lab.wait_for("mixed", "finished", "failed")
    code, output = lab.do("launch", "logs", "mixed", "lines=3")
    assert code == 0 and output.count("=== seed") == 4 and "the data needs at least" in output
    code, output = lab.do("launch", "status", "mixed")
    assert code == 0 and "2 finished" in output and "2 failed" in output and "the data needs" in output


def test_code_and_config_are_frozen(lab: Lab) -> None:
    """A queued job runs the snapshot's code in a fresh interpreter, and knows which commit it is of."""
    submit(lab, "frozen", "hydra.launcher.additional_parameters={hold: true}", **{"training.steps": 20})
    point = lab.wait_for("frozen", "queued")["base"]
    assert point.submission is not None
    code = Path(point.submission.spec.code)
    assert not (code / "tests").exists()
    with (code / "nanogpt" / "training" / "run.py").open("a") as file:
        file.write('print("this is the copy")\n')
    slurm("scontrol", "release", array(point))
    point = lab.wait_for("frozen", "finished")["base"]
    assert point.log is not None and "this is the copy" in point.log.read_text()
    assert json.loads((point.path / "provenance.json").read_bytes())[0]["git"] is not None
