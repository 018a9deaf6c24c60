"""Two nodes with two pretended GPUs each: however srun shares them out, each rank takes its own, or all are refused."""

import os
import subprocess
import sys

import pytest

from launch.slurm_sandbox.cluster import SandboxCluster
from tests.conftest import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def srun(cluster: SandboxCluster, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ranks on both nodes that only choose their GPU, which CUDA_VISIBLE_DEVICES lets them see."""
    command = ["srun", "-N2", "--kill-on-bad-exit=0", *options, sys.executable, "-m", "tests.pretended_gpus", "2"]
    environment = os.environ | cluster.environment | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        (["--ntasks-per-node=2", "--gpus-per-node=2"], 4),
        (["--ntasks-per-node=2", "--gpus-per-task=1"], 4),
        (["--ntasks-per-node=1", "--gpus-per-task=2"], 2),
        (["--ntasks-per-node=2", "--gpus-per-node=2", "--gpu-bind=map_gpu:1,0"], 4),
        (["--ntasks-per-node=2", "--gpus-per-node=2", "--gpu-bind=single:1"], 4),
        (["--ntasks-per-node=2", "--gpus-per-node=2", "--gpu-bind=mask_gpu:0x3,0x1"], 4),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_each_rank_takes_its_own_gpu(options: list[str], ranks: int, cluster: SandboxCluster) -> None:
    done = srun(cluster, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    taken = dict(line.split() for line in done.stdout.splitlines())
    assert sorted(map(int, taken)) == list(range(ranks)) and len(set(taken.values())) == ranks, taken
    assert all(taken[str(rank)].startswith(f"GPU-{rank * 2 // ranks}-") for rank in range(ranks)), taken


def test_more_ranks_than_gpus(cluster: SandboxCluster) -> None:
    done = srun(cluster, "--ntasks-per-node=2", "--gpus-per-node=1")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: srun --ntasks-per-node=2: ranks 0, 1 see only 1 GPU" in done.stderr
