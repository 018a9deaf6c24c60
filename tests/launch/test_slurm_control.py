"""Submitting, watching and leaving, while the controller comes and goes."""

import json
import os
import signal
import time
from collections.abc import Generator

import pytest

from launch.slurm_sandbox.cluster import SandboxCluster
from launch.submission import Submission
from tests.launch.jobs import Lab, describe, lab_on, result, starts
from tests.launch.slurm import started, wait_until_saved
from tests.launch.test_slurm import slurm, submit

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
HELD = "hydra.launcher.additional_parameters={hold: true}"


@pytest.fixture(scope="module")
def small() -> Generator[SandboxCluster, None, None]:
    """Start a separate cluster to damage; arrays have at most three jobs, preemption begins with SIGUSR2."""
    with started(max_array_size=4, user_signal=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def lab(small: SandboxCluster, tmp_path_factory: pytest.TempPathFactory) -> Generator[Lab, None, None]:
    with lab_on(small, tmp_path_factory.mktemp("control")) as lab:
        yield lab


def test_leave_and_attach_with_a_larger_grid(lab: Lab) -> None:
    """Ctrl-C leaves the jobs alone; the same command, grown, submits only what is new."""
    words = lab.sweep("submitit_slurm", "name=grown", "training.seed=1,2")
    process = lab.start(*words)
    lab.wait("grown", lambda points: [p.state for p in points.values()] == ["running"] * 2)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130 and "left; the jobs go on" in output
    words[words.index("training.seed=1,2")] = "training.seed=3,1,2"
    code, output = lab.do(*words)
    assert code == 0 and "3 points, 1 to submit" in output, output
    points = lab.points("grown")
    assert [starts(point) for point in points.values()] == [1, 1, 1], describe(points)
    code, output = lab.do(*words)
    assert code == 0 and "0 to submit (3 finished)" in output


def test_more_points_than_an_array_may_have(lab: Lab) -> None:
    """Seven points are three arrays; each point finds its own config."""
    words = lab.sweep("submitit_slurm", "name=many", "training.seed=1,2,3,4,5,6,7", "training.steps=10", HELD)
    code, output = lab.do(*words, "hydra.launcher.wait=false")
    assert code == 0 and "7 points" in output and "jobs " in output, output
    points = lab.wait_for("many", "queued")
    jobs = [point.job for point in points.values()]
    assert len(jobs) == len(set(jobs)) == 7 and len({job.partition("_")[0] for job in jobs}) == 3
    slurm("scontrol", "release", *{job.partition("_")[0] for job in jobs})
    for name, point in lab.wait_for("many", "finished").items():
        seed = json.loads((point.path / "config.json").read_bytes())["training"]["seed"]
        assert name == f"seed{seed}"


def test_a_submission_whose_process_died_is_found_again(lab: Lab) -> None:
    """Killed after sbatch took the job and before its id was noted: the same command doesn't submit it twice."""
    submit(lab, "orphan", HELD)
    point = lab.wait_for("orphan", "queued")["base"]
    assert point.submission is not None
    path = point.submission.path / "submission.json"
    facts = json.loads(path.read_bytes())
    facts["jobs"][0]["id"] = ""
    path.write_text(json.dumps(facts))
    submit(lab, "orphan", HELD)
    assert lab.points("orphan")["base"].job == point.job
    assert slurm("squeue", "-h", "-r", "-n", facts["jobs"][0]["name"], "-o", "%i").split() == [point.job]
    assert lab.do("launch", "cancel", "orphan")[0] == 0


def test_the_controller_is_down_while_submitting(lab: Lab, small: SandboxCluster) -> None:
    """It is asked again; the point is submitted once."""
    small.stop_controller()
    process = lab.start(*lab.sweep("submitit_slurm", "name=late", "training.steps=20"))
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "trying again" in line:
                break
        assert process.poll() is None, "it waits"
    finally:
        small.start_controller()
    output, _ = process.communicate()
    assert process.returncode == 0, output
    point = lab.points("late")["base"]
    assert point.state == "finished" and starts(point) == 1


def test_the_controller_goes_and_comes_while_watching(lab: Lab, small: SandboxCluster) -> None:
    """What is running is not believed lost, and the job isn't touched."""
    long = {"training.steps": 8000, "eval.every": 4000, "checkpoint.every": 4000}
    process = lab.start(*lab.sweep("submitit_slurm", "name=gone", **long))
    point = lab.wait_for_step("gone", "base", 20)
    assert isinstance(point.submission, Submission)
    wait_until_saved(small, point.submission.spec.jobs[0].name)
    small.stop_controller()
    try:
        time.sleep(4)
        code, output = lab.do("launch", "status", "gone")
        assert code == 0 and "unknown" in output, output
    finally:
        small.start_controller()
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert starts(lab.points("gone")["base"]) == 1


def test_time_limits_are_survived(lab: Lab) -> None:
    """Signalled before the limit, the run saves, is requeued, and ends like one without limits."""
    long = {"training.steps": 8000, "eval.every": 4000, "checkpoint.every": 4000, "hardware.threads": 1}
    patient = [
        "hydra.launcher.max_restarts_without_progress=20"
    ]  # on a busy machine the first step may come too late, several times
    submit(lab, "limited", "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=35", *patient, **long)
    submit(lab, "unlimited", **long)
    points = {
        name: lab.wait_for(name, "finished", "failed", "lost", seconds=800)["base"] for name in ("limited", "unlimited")
    }
    assert points["limited"].state == "finished" and points["limited"].restarts >= 1, describe(points)
    assert points["limited"].submission is not None
    why = [event.get("why") for event in points["limited"].submission.events(0) if event["event"] == "end"]
    assert why[0] == "time limit"
    assert result(points["limited"]) == result(points["unlimited"])


def test_preemption_that_begins_with_the_users_signal(lab: Lab) -> None:
    submit(lab, "preempted", "hydra.launcher.partition=dev")
    lab.wait_for_step("preempted", "base", 40)
    slurm("sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-t2", "-o/dev/null", "--wrap", "sleep 1")
    point = lab.wait_for("preempted", "finished", "failed", "lost", "cancelled")["base"]
    assert point.state == "finished" and point.restarts == 1, describe({"preempted": point})
    assert point.submission is not None
    assert next(e["why"] for e in point.submission.events(0) if e["event"] == "end") == "preempted"


def test_one_run_without_a_sweep(lab: Lab) -> None:
    """`submit` puts the records into the run's own directory, where train.py would train it."""
    words = [word for word in lab.words(**{"training.steps": 20})]
    code, output = lab.do("launch", "submit", *words, "name=single", "hydra.launcher.poll_s=0.5")
    assert code == 0 and "1 point, 1 to submit" in output, output
    code, output = lab.do("train.py", *words, "name=single")
    assert code == 0 and "finished already, at step 20" in output
    code, output = lab.do("launch", "status", "single")
    assert code == 0 and "20/20" in output


def test_slurm_refuses(lab: Lab) -> None:
    """sbatch's message is shown, and nothing counts as submitted."""
    words = lab.sweep("submitit_slurm", "name=wrong", "hydra.launcher.partition=nowhere")
    code, output = lab.do(*words)
    assert code == 2 and "sbatch refuses: " in output and "invalid partition" in output.lower(), output
    code, output = lab.do("launch", "status", "wrong")
    assert code == 0 and "lost" in output
    code, output = lab.do(*lab.sweep("submitit_slurm", "name=wrong", "training.steps=10"))
    assert code == 0 and "1 to submit" in output, output


def test_halving_on_the_cluster(lab: Lab) -> None:
    """Each rung is an array; a promoted run continues in a new job, with an uninterrupted run's result."""
    words = ("name=half", "hydra/sweeper=halving", "hydra.sweeper.rungs=2", "optimizer.lr=1e-4,1e-2")
    command = lab.sweep("submitit_slurm", *words, **{"training.steps": 60})
    code, output = lab.do(*command)
    assert code == 0 and "best    lr0.01-" in output, output
    points = lab.points("half")
    assert {name: (point.state, point.step) for name, point in points.items()} == {
        "lr0.0001": ("paused", 20),
        "lr0.01": ("finished", 60),
    }, describe(points)
    assert starts(points["lr0.01"]) == 2
    code, output = lab.do(*command)
    assert code == 0 and output.count(" 0 to submit") == 2, output
