"""Which rank a process is, from the variables of srun, as Slurm 22.05 sets them."""

import pytest

from nanogpt.distributed.env import RankEnv, first_host, read_rank_env, set_rank_env_from_slurm, tasks_on_node
from nanogpt.errors import BadInput

STEP = {
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "n[1-2]",
}


def test_a_task_of_srun_is_a_rank() -> None:
    environment = dict(STEP)
    set_rank_env_from_slurm(environment)
    assert read_rank_env(environment) == RankEnv(rank=3, world=4, local_rank=1, local_world=2)
    assert environment["MASTER_ADDR"] == "n1" and environment["MASTER_PORT"] == "10041"


@pytest.mark.parametrize(
    "change",
    [{"RANK": "0", "WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "1"}],
    ids=["torchrun under srun", "an interactive shell"],
)
def test_others_are_left_alone(change: dict[str, str]) -> None:
    environment = STEP | change
    before = dict(environment)
    set_rank_env_from_slurm(environment)
    assert environment == before
    batch = {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}  # a batch script, without srun
    set_rank_env_from_slurm(batch)
    assert read_rank_env(batch) == RankEnv()


def test_a_job_number_of_ten_digits() -> None:
    environment = STEP | {"SLURM_JOB_ID": "2147483649", "SLURM_STEP_ID": "4294967290"}
    set_rank_env_from_slurm(environment)
    assert 10_000 <= int(environment["MASTER_PORT"]) < 30_000


def test_ports_differ_between_jobs_steps_and_restarts() -> None:
    ports = set()
    for change in ({}, {"SLURM_JOB_ID": "42"}, {"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"}):
        environment = STEP | change
        set_rank_env_from_slurm(environment)
        ports.add(environment["MASTER_PORT"])
    assert len(ports) == 4 and all(10_000 <= int(port) < 30_000 for port in ports)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu-[007-009,12].rack,login1", "gpu-007.rack"),
        ("a1,b[2-3]", "a1"),
        ("x[04]y", "x04y"),
        ("rack1n[01-04]", "rack1n01"),
        ("r[1-2]n[01-04],x3", "r1n01"),
    ],
)
def test_first_host(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_tasks_on_a_node() -> None:
    assert [tasks_on_node("4(x3),2", node) for node in range(4)] == [4, 4, 4, 2]
    with pytest.raises(BadInput, match="SLURM_NODEID=4"):
        tasks_on_node("4(x3),2", 4)
