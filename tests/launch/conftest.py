"""A Slurm for the tests marked `slurm`, started once a session."""

from collections.abc import Generator

import pytest

from launch.slurm_sandbox.cluster import SandboxCluster
from tests.launch import slurm


@pytest.fixture(scope="session")
def cluster() -> Generator[SandboxCluster, None, None]:
    """Two nodes without accounting; The jobs of other tests may still be in its queue."""
    with slurm.started() as cluster:
        yield cluster
