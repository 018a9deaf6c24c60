"""A real Slurm for tests, started in a new folder, and queries of it."""

import itertools
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launch.slurm_sandbox.cluster import STEP, SandboxCluster
from launch.slurm_sandbox.daemons import wait_until
from launch.slurm_sandbox.packages import FOR_ACCOUNTING, PACKAGES, check_root, find_missing
from nanogpt.errors import BadEnvironment
from tests.ranks import HANG

FOLDERS = "nanogpt-slurm-test-"
NUMBERS = itertools.count()


def skip_without_slurm(accounting: bool = False) -> None:
    """Skip the test, with the reason, where no cluster can be started."""
    if lacking := find_missing(PACKAGES | (FOR_ACCOUNTING if accounting else {})):
        pytest.skip(f"no {lacking[0]} here; make slurm installs it")
    try:
        check_root()
    except BadEnvironment as error:
        pytest.skip(str(error))


def new_cluster(**settings: Any) -> SandboxCluster:
    """Return a cluster that isn't started, in a new folder and with ports that other test sessions don't use."""
    settings = {"accounting": False, "port": 27000 + STEP * (os.getpid() % 200)} | settings
    return SandboxCluster(Path(f"/tmp/{FOLDERS}{os.getpid()}-{next(NUMBERS)}"), **settings)


@contextmanager
def started(**settings: Any) -> Generator[SandboxCluster, None, None]:
    """Run a cluster while inside."""
    skip_without_slurm(bool(settings.get("accounting")))
    remove_stale()
    cluster = new_cluster(**settings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop(wipe=True)


def remove_stale() -> None:
    """End the clusters of test sessions that were killed."""
    for folder in Path("/tmp").glob(f"{FOLDERS}*"):
        pid = folder.name.removeprefix(FOLDERS).partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            SandboxCluster(folder).stop(wipe=True)
            shutil.rmtree(folder, ignore_errors=True)


def submit(cluster: SandboxCluster, script: str, *options: str) -> str:
    """Submit a shell script's text. Returns the job's id; its output is in `<root>/<id>.out`."""
    output = f"--output={cluster.root}/%j.out"
    return cluster.ask("sbatch", "--parsable", output, "--open-mode=append", *options, "--wrap", script).strip()


def state(cluster: SandboxCluster, job: str) -> str:
    """Return a job's state as squeue names it: RUNNING, PENDING, COMPLETED ..."""
    return cluster.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()


def wait_for(cluster: SandboxCluster, job: str, *states: str, seconds: float = HANG) -> str:
    """Wait until a job has one of these states. Returns it."""
    limit = time.monotonic() + seconds
    while (now := state(cluster, job)) not in states:
        assert time.monotonic() < limit, f"job {job} is {now}, not {' or '.join(states)}, after {seconds:.0f} s"
        time.sleep(0.1)
    return now


def wait_until_saved(cluster: SandboxCluster, name: str, seconds: float = 20.0) -> None:
    """Wait until the controller has written the job of this name to disk, which it does every 5 s."""
    saved = cluster.root / "state" / "job_state"
    assert wait_until(lambda: saved.exists() and name.encode() in saved.read_bytes(), seconds)


def output(cluster: SandboxCluster, job: str) -> str:
    """Return the output of a job."""
    path = cluster.root / f"{job}.out"
    return path.read_text() if path.exists() else ""


def restarts(cluster: SandboxCluster, job: str) -> int:
    """Return the number of requeues of a job."""
    words = cluster.ask("scontrol", "show", "job", "-o", job).split()
    return int(dict(word.partition("=")[::2] for word in words)["Restarts"])


def program(path: Path, script: str) -> None:
    """Write an executable shell script."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
