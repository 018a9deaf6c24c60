"""The throw-away Slurm: a real one, where there can be one, and what it says where there can't."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from launch.slurm_sandbox import cluster as module
from launch.slurm_sandbox import daemons
from launch.slurm_sandbox.__main__ import main
from launch.slurm_sandbox.cluster import STEP, SandboxCluster
from launch.slurm_sandbox.daemons import list_pids, pids_with_environment
from nanogpt.errors import BadEnvironment, BadInput, LabError
from tests.launch import slurm
from tests.launch.slurm import output, restarts, state, submit, wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def full() -> Generator[SandboxCluster, None, None]:
    """Start a cluster with slurmdbd and MariaDB."""
    with slurm.started(accounting=True) as cluster:
        yield cluster


@pytest.fixture
def idle(cluster: SandboxCluster) -> SandboxCluster:
    """Return the session's cluster, without jobs."""
    cluster.cancel_jobs()
    return cluster


def everything() -> dict[str, str]:
    """Return what a cluster must not change outside its folder."""
    places = [Path("/etc/hosts"), Path("/etc/munge"), Path("/etc/slurm"), Path("/run/munge"), Path("/var/lib/mysql")]
    seen = {str(place): str(place.stat().st_mtime_ns) if place.exists() else "" for place in places}
    return seen | {"host": socket.gethostname(), "mounts": Path("/proc/self/mounts").read_text()}


@pytest.mark.slurm
def test_two_nodes_with_gpus_that_know_each_other(full: SandboxCluster) -> None:
    assert full.running_daemons() == ["munged", "mariadbd", "slurmdbd", "slurmctld", "n1", "n2"]
    lines = full.ask("sinfo", "-hN", "-p", "dev", "-o", "%N %t %c %G").splitlines()
    assert sorted(lines) == ["n1 idle 8 gpu:2", "n2 idle 8 gpu:2"]
    names = full.ask("srun", "-N2", "--ntasks-per-node=2", "hostname").split()
    assert sorted(names) == ["n1", "n1", "n2", "n2"]
    assert "127.0.0.1" in full.ask("srun", "-N1", "-w", "n1", "getent", "hosts", "n2")
    assert full.ask("srun", "-n1", "--gpus=2", "printenv", "CUDA_VISIBLE_DEVICES").strip() == "0,1"


@pytest.mark.slurm
def test_sacct_knows_what_became_of_a_job(full: SandboxCluster) -> None:
    job = submit(full, "exit 3")
    wait_for(full, job, "FAILED")
    assert daemons.wait_until(lambda: "FAILED|3:0" in full.ask("sacct", "-nPX", "-j", job, "-o", "State,ExitCode"), 20)


@pytest.mark.slurm
def test_starting_twice_is_starting_once(full: SandboxCluster) -> None:
    before = [full.daemon(name).pid() for name in full.daemon_names()]
    assert full.start() == []
    assert [full.daemon(name).pid() for name in full.daemon_names()] == before
    with pytest.raises(BadInput, match="a cluster with other settings runs here"):
        SandboxCluster(full.root, accounting=False).start()
    assert "running in" in full.status() and "n2" in full.status()


@pytest.mark.slurm
def test_a_warm_start_goes_on_with_accounts_and_job_numbers(full: SandboxCluster) -> None:
    job = submit(full, "true")
    wait_for(full, job, "COMPLETED")
    full.stop()
    assert "no cluster runs" in full.status()
    assert full.start() == full.daemon_names()
    assert "COMPLETED" in full.ask("sacct", "-nPX", "-j", job, "-o", "State")
    assert int(submit(full, "true")) > int(job)


@pytest.mark.slurm
def test_half_a_database_is_made_anew(full: SandboxCluster) -> None:
    full.stop()
    (full.root / "database" / "ibdata1").write_bytes(b"nonsense")
    (full.root / "database.half").mkdir()
    assert full.start() == full.daemon_names()
    wait_for(full, submit(full, "true"), "COMPLETED")


@pytest.mark.slurm
def test_a_queued_job_outlives_the_controller(idle: SandboxCluster) -> None:
    job = submit(idle, "true", "--begin=now+1hour", "--job-name=outlives")
    slurm.wait_until_saved(idle, "outlives")
    idle.stop_controller()
    assert "slurmctld" not in idle.running_daemons()
    with pytest.raises(BadEnvironment, match="squeue"):
        state(idle, job)
    idle.start_controller()
    assert state(idle, job) == "PENDING"


@pytest.mark.slurm
def test_a_node_that_fails_gives_its_job_back(idle: SandboxCluster) -> None:
    script = "echo started; setsid sleep 1000 & sleep 1000"
    job = submit(idle, script, "-w", "n2")
    wait_for(idle, job, "RUNNING")
    assert daemons.wait_until(lambda: "started" in output(idle, job), 20)
    inside = pids_with_environment({"SLURM_JOB_ID": job, "SLURMD_NODENAME": "n2"})
    assert len(inside) >= 3
    idle.fail_node("n2")
    assert not set(inside) & set(processes_that_run()) and idle.daemon("n2").pid() is None
    assert idle.daemon("n1").pid() is not None
    assert "down" in idle.ask("sinfo", "-hN", "-n", "n2", "-p", "dev", "-o", "%t")
    wait_for(idle, job, "PENDING")
    assert restarts(idle, job) == 1
    idle.restore_node("n2")
    assert "down" not in idle.ask("sinfo", "-hN", "-n", "n2", "-p", "dev", "-o", "%t")
    wait_for(idle, job, "RUNNING")
    assert daemons.wait_until(lambda: output(idle, job).count("started") == 2, 20)
    with pytest.raises(BadInput, match="node n3: this cluster has n1 n2"):
        idle.fail_node("n3")


@pytest.mark.slurm
def test_high_preempts_scavenge_at_once(idle: SandboxCluster) -> None:
    low = submit(idle, "sleep 1000", "-p", "scavenge", "-N2", "--exclusive")
    wait_for(idle, low, "RUNNING")
    high = submit(idle, "sleep 1000", "-p", "high", "-N2", "--exclusive")
    wait_for(idle, high, "RUNNING")
    wait_for(idle, low, "PENDING")
    assert restarts(idle, low) == 1


@pytest.mark.slurm
def test_down_leaves_nothing_behind() -> None:
    slurm.skip_without_slurm()
    before = everything()
    cluster = slurm.new_cluster()
    assert cluster.stop() == [] and not cluster.root.exists()
    cluster.start()
    job = submit(cluster, "trap '' TERM; echo started; while true; do sleep 1; done")  # Slurm kills it after 5 s
    wait_for(cluster, job, "RUNNING")
    assert daemons.wait_until(lambda: "started" in output(cluster, job), 20)
    assert cluster.stop() == ["munged", "slurmctld", "n1", "n2"]
    assert pids_with_environment(cluster.environment) == []
    assert everything() == before
    assert cluster.is_ours()
    cluster.stop(wipe=True)
    assert not cluster.root.exists()


@pytest.mark.slurm
def test_what_a_crash_leaves_does_not_hinder_the_next_start() -> None:
    """All daemons are killed; a pid file names another user's process, which must survive."""
    slurm.skip_without_slurm()
    cluster = slurm.new_cluster()
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        cluster.start()
        for name in cluster.daemon_names():
            cluster.daemon(name).stop(seconds=0)
        (cluster.root / "run" / "n1.pid").write_text(str(bystander.pid))
        (cluster.root / "run" / "slurmctld.pid").write_text("nonsense")
        assert cluster.running_daemons() == []
        port = cluster.controller_port()
        with socket.socket() as other:  # somebody else has come to use a port
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("", port + 2))
            other.listen()
            assert cluster.start() == cluster.daemon_names()
        assert (cluster.controller_port() - port) % STEP == 0 and cluster.controller_port() != port
        assert cluster.ask("srun", "-N2", "hostname").split()
        assert daemons.wait_until(lambda: not cluster.ask("squeue", "-h"), 20)
        cluster.daemon("n2").stop(seconds=0)
        assert cluster.start() == ["n2"]
    finally:
        cluster.stop(wipe=True)
        assert bystander.poll() is None
        bystander.kill()
        bystander.wait()


@pytest.mark.slurm
def test_a_start_that_fails_leaves_no_process_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.skip_without_slurm()
    cluster = slurm.new_cluster()
    monkeypatch.setattr(module, "write_files", spoiled(module.write_files))
    with pytest.raises(BadEnvironment, match=r"slurmctld doesn't start: .*; more in /tmp/"):
        cluster.start()
    assert pids_with_environment(cluster.environment) == []
    cluster.stop(wipe=True)


def spoiled(write_files: Callable[..., None]) -> Callable[..., None]:
    """Call `write_files` and add a word to slurm.conf that Slurm doesn't know."""

    def write(cluster: SandboxCluster, port: int) -> None:
        write_files(cluster, port)
        cluster.conf.write_text(cluster.conf.read_text() + "NoSuchThing=1\n")

    return write


def processes_that_run() -> list[int]:
    """Return all processes but zombies, which their parents have not waited for yet."""
    return [pid for pid in list_pids() if daemons.namespace(pid)]


# What it says where it can't start.


def test_an_unknown_word_is_answered_with_the_nearest() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.slurm_sandbox", "dwon"], cwd=ROOT, text=True, capture_output=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: dwon: not one of up status down --wipe; did you mean 'down'?\n"


@pytest.mark.parametrize("words", [[], ["up", "down"], ["up", "--wipe"]])
def test_one_action_at_a_time(words: list[str]) -> None:
    with pytest.raises(BadInput, match="one of up status down; --wipe goes with down"):
        main(words)


def test_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "NANOGPT_SLURM" in capsys.readouterr().out


WRONG = [
    ({"root": Path("relative")}, "absolute, at most 80 characters"),
    ({"root": Path("/tmp/a b")}, "only letters, digits"),
    ({"root": Path("/" + "x" * 90)}, "at most 80 characters"),
    ({"nodes": 0}, "nodes=0, gpus=2: 1 to 18 nodes, 0 to 4 GPUs"),
    ({"gpus": 5}, "nodes=2, gpus=5: 1 to 18 nodes, 0 to 4 GPUs"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        SandboxCluster(**({"root": Path("/tmp/c")} | settings))


def test_a_folder_of_something_else_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "check_root", lambda: None)
    monkeypatch.setattr(module, "install", lambda _: None)
    root = Path(f"/tmp/nanogpt-slurm-foreign-{os.getpid()}")
    root.mkdir()
    try:
        (root / "thesis.txt").write_text("years of work")
        with pytest.raises(LabError, match="neither a cluster's nor an empty folder of root's"):
            SandboxCluster(root).start()
        assert SandboxCluster(root).stop(wipe=True) == []
        assert (root / "thesis.txt").read_text() == "years of work"
    finally:
        (root / "thesis.txt").unlink()
        (root / "lock").unlink(missing_ok=True)
        root.rmdir()


def test_a_daemon_that_dies_at_once_is_not_waited_for(tmp_path: Path) -> None:
    command = ("sh", "-c", "echo a word; setsid sh -c 'sleep 0.2; echo no such port; exit 1' &")
    daemon = daemons.Daemon("mine", command, tmp_path, {"NANOGPT_DAEMON": str(tmp_path)}, lambda: True)
    with pytest.raises(BadEnvironment, match="mine doesn't start: no such port; more in"):
        daemon.start()


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_daemon_is_stopped_by_force_when_it_must(stubborn: bool, tmp_path: Path) -> None:
    script = f"trap '{'' if stubborn else 'exit'}' TERM; echo $$ > {tmp_path}/mine.pid; while true; do sleep 0.1; done"
    command = ("setsid", "--fork", "sh", "-c", script)
    daemon = daemons.Daemon("mine", command, tmp_path, {"NANOGPT_DAEMON": str(tmp_path)}, lambda: True)
    assert daemon.start() and not daemon.start()
    pid = daemon.pid()
    assert pid is not None
    daemon.stop(seconds=1 if stubborn else 60)
    assert daemon.pid() is None and not daemon.pid_file.exists()
    assert not daemons.has_environment(pid, {"NANOGPT_DAEMON": str(tmp_path)})


def test_a_tool_that_hangs_is_not_waited_for() -> None:
    with pytest.raises(BadEnvironment, match="sleep: no answer within 0 s"):
        daemons.run_tool(("sleep", "60"), {}, seconds=0.2)
