"""Several points in one job: resources, shares of GPUs and cores, and how each point ends, without a cluster and as
processes of this machine.
"""

import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from launch import job, slurm
from launch.job import Attempt, adopt_share, begin_attempt, end_job, find_attempts, record_exit
from launch.resources import Resources, batch_options, compute_resources
from launch.study import PlannedRun, Study
from launch.submission import JobArray, Submission, SubmissionSpec, create_submission
from nanogpt.config import TrainConfig
from nanogpt.errors import STOPPED, BadEnvironment, BadInput, Diverged
from tests.launch.jobs import Lab, describe
from tests.launch.test_resources import asked, resources


def test_a_job_asks_for_as_much_as_its_points() -> None:
    words = ["hardware=gpu", "hydra.launcher.points_per_job=4", "hydra.launcher.mem_gb=8", "hardware.devices=2"]
    config, how = asked(*words, "hydra.launcher.cpus_per_task=3")
    found = compute_resources(config, how)
    assert found == Resources(1, 2, 2, 3, points_per_job=4)
    assert found.describe() == "1 node x 2 ranks, 2 GPUs a node, 3 cores a rank, 4 points per job"
    options = batch_options(how, found, "n")
    assert options["gpus_per_node"] == 8 and options["ntasks_per_node"] == 8 and options["nodes"] == 1
    assert options["mem"] == "32768M" and options["cpus_per_task"] == 3 and options["time"] == 60
    assert options["srun_args"][:2] == ["--kill-on-bad-exit=0", "--wait=0"]  # a point that ends leaves the others


REFUSED = [
    ("submitit_slurm", ["points_per_job=2", "hardware=2x8xh100"], "points_per_job=2: several points share a node"),
    (
        "submitit_slurm",
        ["points_per_job=auto"],
        "points_per_job=auto: the GPUs and cores of Slurm's nodes aren't known",
    ),
    ("submitit_slurm", ["points_per_job=2", "gres='gpu:a100:2'"], "gres=gpu:a100:2: points that share a node need"),
    ("submitit_local", ["points_per_job=2", "array_parallelism=3"], "array_parallelism=3: hydra.launcher.points_per_"),
    ("submitit_local", ["points_per_job=3", "hardware=gpu"], "points_per_job=3: this machine has 2 GPUs"),
    ("submitit_slurm", ["points_per_job=0"], "points_per_job=0: out of range; allowed: integer in [1, 2^53] or auto"),
    ("submitit_slurm", ["points_per_job=many"], "points_per_job=many"),
    ("basic", ["points_per_job=2"], "choose hydra/launcher=submitit_slurm or submitit_local"),
]


@pytest.mark.parametrize(("launcher", "words", "message"), REFUSED, ids=[case[2][:30] for case in REFUSED])
def test_refused(launcher: str, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    typed = [word if "hardware" in word else f"hydra.launcher.{word}" for word in words]
    with pytest.raises(BadInput) as refused:
        resources(*typed, launcher=launcher)
    assert message in str(refused.value)


def test_auto_is_as_many_as_gpus_or_cores_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    auto = "hydra.launcher.points_per_job=auto"
    assert resources("hardware=gpu", auto, launcher="submitit_local").points_per_job == 5
    assert resources("hardware=gpu", "hardware.devices=2", auto, launcher="submitit_local").points_per_job == 2
    monkeypatch.setattr(os, "sched_getaffinity", Mock(return_value=set(range(100, 107))))  # CPUs of no known core
    monkeypatch.setattr("nanogpt.cpu_threads.cgroup_limit", lambda: None)
    cpu = ("hardware=cpu", auto)
    assert resources(*cpu, launcher="submitit_local").points_per_job == 7
    assert resources(*cpu, "hardware.threads=3", launcher="submitit_local").points_per_job == 2
    assert resources(*cpu, "hardware.threads=9", launcher="submitit_local").points_per_job == 1


@pytest.fixture
def submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submission:
    """Five points of two ranks, two points per job: jobs 7_0, 7_1 and 7_2."""
    config, how = asked("hydra.launcher.points_per_job=2", "hydra.launcher.max_requeues=2")
    spec = SubmissionSpec(
        executor="slurm",
        launcher=how.model_dump(mode="json"),
        resources={"nodes": 1, "tasks_per_node": 2, "gpus_per_node": 2, "cpus_per_task": None, "points_per_job": 2},
        code="code",
        cwd=str(tmp_path),
        logs=str(tmp_path / "logs"),
        python="python",
        command=["train.py"],
        time=1.0,
        jobs=(),
    )
    study = Study(tmp_path / "study", [])
    study.records.mkdir(parents=True)
    (tmp_path / "logs").mkdir()
    made = create_submission(study, [PlannedRun(tmp_path / f"run{i}", config) for i in range(5)], spec)
    made.save_jobs((JobArray(id="7", name="n", first=0, count=5),))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    return made


def attempts_of_job(submission: Submission, number: int, monkeypatch: pytest.MonkeyPatch) -> list[Attempt]:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
    return find_attempts(submission.path, 0)


def test_points_of_a_job(submission: Submission, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jobs = [[attempt.index for attempt in attempts_of_job(submission, n, monkeypatch)] for n in range(3)]
    assert jobs == [[0, 1], [2, 3], [4]]
    assert [submission.job_id(index) for index in range(5)] == ["7_0", "7_0", "7_1", "7_1", "7_2"]
    assert submission.log(3) == tmp_path / "logs" / "7_1_2_log.out"
    assert submission.log(3, rank=1) == tmp_path / "logs" / "7_1_3_log.out"


@pytest.mark.parametrize(
    ("visible", "index", "task", "expected"),
    [
        ("4,5,6,7", 2, 1, ("4,5", "1", "1")),
        ("4,5,6,7", 3, 2, ("6,7", "0", "1")),
        ("GPU-b", 3, 2, ("GPU-b", "0", "1")),  # srun has given each rank its own
    ],
)
def test_each_point_has_its_own_share(
    visible: str,
    index: int,
    task: int,
    expected: tuple[str, str, str],
    submission: Submission,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": visible, "SLURM_PROCID": str(task)}
    monkeypatch.setattr(os, "environ", dict(os.environ) | environment)
    monkeypatch.setattr("launch.job.share_cores", {4: 1}.__getitem__)
    for name in ("OMP_NUM_THREADS", "RANK", "SLURM_CPUS_PER_TASK"):
        os.environ.pop(name, None)
    attempt = attempts_of_job(submission, index // 2, monkeypatch)[index % 2]
    adopt_share(attempt)
    found = os.environ
    assert (found["CUDA_VISIBLE_DEVICES"], found["RANK"], found["OMP_NUM_THREADS"]) == expected
    assert found["WORLD_SIZE"] == found["LOCAL_WORLD_SIZE"] == "2" and found["LOCAL_RANK"] == found["RANK"]
    assert found["NANOGPT_STORE"] == str(submission.path / "exits" / f"{index}-0-0.store")


def test_too_few_gpus_are_refused(submission: Submission, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"CUDA_VISIBLE_DEVICES": "0,1,2", "SLURM_PROCID": "0"})
    with pytest.raises(BadEnvironment, match=r"CUDA_VISIBLE_DEVICES=0,1,2: 2 points need 4 GPUs"):
        adopt_share(attempts_of_job(submission, 0, monkeypatch)[0])


def states(submission: Submission) -> list[str]:
    last = [events[-1] if (events := submission.events(index)) else {} for index in range(5)]
    return [str(event.get("state", event.get("event", "-"))) for event in last]


@pytest.fixture
def requeues(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs that were requeued, by a Slurm that knows every job as running."""
    found: list[str] = []
    monkeypatch.setattr(slurm, "show_job", Mock(return_value={"JobState": "RUNNING"}))
    monkeypatch.setattr(slurm, "requeue", found.append)
    monkeypatch.setattr(job.time, "sleep", Mock())
    return found


def start(attempts: list[Attempt]) -> None:
    for attempt in attempts:
        assert attempt.exit_code is not None or begin_attempt(attempt) == 0


def test_one_point_is_done_and_the_other_goes_on(
    submission: Submission, requeues: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit: the finished point is recorded as soon as its last rank ended, and isn't started again."""
    done, other = attempts_of_job(submission, 0, monkeypatch)
    start([done, other])
    record_exit(done, 1, 0, "")
    assert states(submission)[:2] == ["start", "start"]
    record_exit(done, 0, 0, "")
    assert states(submission)[:2] == ["finished", "start"]
    record_exit(other, 0, STOPPED, "asked to stop")
    record_exit(other, 1, STOPPED, "asked to stop")
    assert states(submission)[:2] == ["finished", "start"]  # only the batch script knows whether it was cancelled
    assert end_job([done, other], 0) == STOPPED
    assert states(submission)[:2] == ["finished", "requeued"] and requeues == ["7_0"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    attempts = attempts_of_job(submission, 0, monkeypatch)
    assert [attempt.exit_code for attempt in attempts] == [0, None]
    start(attempts)
    assert [attempt.has_begun for attempt in attempts] == [False, True]
    for rank in (0, 1):
        record_exit(attempts[1], rank, 0, "")
    assert end_job(attempts, 0) == 0 and requeues == ["7_0"]
    assert states(submission)[:2] == ["finished", "finished"]
    assert [len(submission.events(index)) for index in (0, 1)] == [2, 4]


def test_a_point_that_fails_is_not_its_neighbours_fault(
    submission: Submission, requeues: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    diverged, killed = attempts_of_job(submission, 1, monkeypatch)
    start([diverged, killed])
    for rank in (0, 1):
        record_exit(diverged, rank, Diverged.exit_code, "loss nan")
    logs = Path(submission.spec.logs)
    (logs / "7_1_0_log.out").write_text("error: loss nan\n")
    (logs / "7_1_2_log.out").write_text("=== attempt 0, rank 0\nstep 3\n")  # killed without a word
    killed.run.joinpath("checkpoints", "step-00000020").mkdir(parents=True)
    assert end_job([diverged, killed], Diverged.exit_code) == Diverged.exit_code
    assert states(submission)[2:4] == ["diverged", "requeued"] and requeues == ["7_1"]
    assert submission.events(3)[-1]["why"] == "killed by SIGKILL"


def test_memory_that_ran_out_is_found_in_the_log_of_another_task(
    submission: Submission, requeues: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, killed = attempts = attempts_of_job(submission, 1, monkeypatch)
    start(attempts)
    for rank in (0, 1):
        record_exit(attempts[0], rank, 0, "")
    (Path(submission.spec.logs) / "7_1_0_log.out").write_text("slurmstepd: error: Detected 1 oom_kill event in 7.0\n")
    assert end_job(attempts, 137) == 137 and requeues == []
    assert states(submission)[2:4] == ["finished", "failed"] and killed.exit_code == 137
    assert "out of memory" in submission.events(3)[-1]["why"]


def test_a_cancelled_job_is_left_to_slurm(
    submission: Submission, requeues: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "show_job", Mock(return_value={"JobState": "COMPLETING"}))
    attempts = attempts_of_job(submission, 0, monkeypatch)
    start(attempts)
    for rank in (0, 1):
        record_exit(attempts[0], rank, 0, "")
        record_exit(attempts[1], rank, STOPPED, "asked to stop")
    end_job(attempts, 0)
    assert states(submission)[:2] == ["finished", "start"] and requeues == []


@pytest.mark.slow
def test_local_points_run_at_once_with_a_core_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real points, two at once: threads are shared out, one fails, and the others finish."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    lab = Lab(tmp_path)
    words = ("training.steps=40", "hydra.launcher.points_per_job=2", "hardware.threads=null", "name=packed")
    points = "sweep.points=[{training.seed:1},{training.seed:2},{model.vocab_size:20},{training.seed:3}]"
    code, output = lab.do(*lab.sweep("submitit_local", *words, points))
    found = lab.points("packed")
    assert code == 3 and "2 points per job" in output, output
    assert {name: point.state for name, point in found.items()} == {
        "seed1": "finished",
        "seed2": "finished",
        "seed3": "finished",
        "vocab_size20": "failed",
    }, describe(found)
    first, second = (found[name] for name in ("seed1", "seed2"))
    assert first.submission is not None
    times = [[e["time"] for e in first.submission.events(p.index)] for p in (first, second)]
    assert times[1][0] < times[0][1] and times[0][0] < times[1][1]  # side by side
    cores = max(1, len(os.sched_getaffinity(0)) // 2)
    for point in (first, second):
        started = json.loads((point.path / "provenance.json").read_text())[0]
        assert started["arithmetic"]["threads"] == cores
    spec = first.submission.spec
    assert spec.resources["points_per_job"] == 2 and isinstance(first.submission.config(0), TrainConfig)
