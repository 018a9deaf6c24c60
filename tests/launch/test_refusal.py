"""A refused submission is known to have no job, even if Slurm does not answer afterwards."""

from pathlib import Path

import pytest

from cli.sweep_request import read_sweep
from launch import slurm
from launch.status import JobQueues, read_points
from launch.sweep import run_sweep
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput
from nanogpt.training.run import train
from tests.launch.jobs import Lab
from tests.launch.slurm import program


@pytest.mark.parametrize(
    ("conf", "hint"),
    [
        (None, "SLURM_CONF isn't set: export the line that make slurm-up"),
        ("/nowhere/slurm.conf", "no such file"),
    ],
)
def test_a_refused_submission_leaves_nothing_on_its_way(
    conf: str | None, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "sbatch": "echo 'sbatch: error: resolve_ctls_from_dns_srv: res_nsearch error' >&2; exit 1",
        "srun": "exit 1",
        "squeue": "exit 1",
        "scontrol": "exit 1",
    }.items():
        program(programs / name, text)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    if conf:
        monkeypatch.setenv("SLURM_CONF", conf)
    monkeypatch.setattr(slurm, "list_jobs", lambda: None)  # it doesn't answer
    monkeypatch.chdir(tmp_path)
    lab = Lab(tmp_path)
    words = lab.only("name=study", "hydra/launcher=submitit_slurm", "optimizer.lr=1e-3,1e-2")
    with pytest.raises(BadInput, match="sbatch refuses: resolve_ctls") as refused:
        run_sweep(read_sweep("train", TrainConfig, words, multirun=True), train)
    assert hint in str(refused.value)
    states = {(point.state, point.why) for point in read_points(lab.study("study"), JobQueues())}
    assert states == {("lost", "its submission was cut short or refused; the same command submits it")}
