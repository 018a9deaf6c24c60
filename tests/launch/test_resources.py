"""Resources that a point requests, and errors before anything is submitted."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from cli import sweep_request
from cli.compose import register_schemas
from cli.launcher_config import SlurmLauncher
from cli.sweep_request import read_sweep
from launch.resources import Resources, batch_options, compute_resources, with_ranks
from launch.study import PlannedRun, Study
from launch.submission import SubmissionSpec, check_only_owner_writes, create_submission
from nanogpt.config import TrainConfig
from nanogpt.errors import BadEnvironment, BadInput
from tests.conftest import Run


def asked(*words: str, launcher: str = "submitit_slurm") -> tuple[TrainConfig, SlurmLauncher]:
    sweep = read_sweep("train", TrainConfig, [f"hydra/launcher={launcher}", "model=gpt2", *words], multirun=True)
    return sweep.points[0].config, sweep.launcher  # type: ignore[return-value]


def resources(*words: str, launcher: str = "submitit_slurm") -> Resources:
    config, how = asked(*words, launcher=launcher)
    found = compute_resources(config, how)
    with_ranks(config, found)
    return found


def test_resources_come_from_hardware() -> None:
    assert resources("hardware=2x8xh100") == Resources(2, 8, 8, None)
    assert resources("hardware=gpu") == Resources(1, 1, 1, None)
    assert resources("hardware=cpu", "hardware.threads=4", "hardware.devices=2") == Resources(1, 2, 0, 4)
    assert resources() == Resources(1, 1, 0, None)
    assert resources("hardware=gpu", "hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=4") == Resources(
        2, 4, 4, None
    )
    assert resources("hardware=gpu", "hydra.launcher.gres='gpu:a100:1'").gpus_per_node == 0


REFUSED = [
    (["hardware=2x8xh100", "hydra.launcher.nodes=4"], "hydra.launcher.nodes=4: but hardware.nodes=2"),
    (["hardware=gpu", "hydra.launcher.gpus_per_node=4"], "gpus_per_node=4: more than the 1 ranks on a node"),
    (["hardware=8xh100", "hydra.launcher.gpus_per_node=4"], "gpus_per_node=4: too few for the 8 ranks"),
    (["hardware=cpu", "hydra.launcher.gpus_per_node=1"], "but hardware.device=cpu"),
    (["hydra.launcher.tasks_per_node=7"], "must divide the 480 sequences"),
    (
        ["hydra.launcher.timeout_min=2"],
        "hydra.launcher.timeout_min=2: leaves no time before hydra.launcher.signal_delay_s=120",
    ),
    (["hydra.launcher.nodes=two"], "hydra.launcher.nodes=two: an integer is needed"),
    (["hydra.launcher.partition='a b'"], "hydra.launcher.partition=a b: not possible"),
    (["hydra.launcher.partition='a\n#SBATCH -p x'"], "hydra.launcher.partition=a\\n#SBATCH -p x: not possible"),
    (["hydra.launcher.account='--wrap=x'"], "not possible"),
    (["hydra.launcher.setup=['a\nb']"], "hydra.launcher.setup=a\\nb: not possible; allowed: one printable line"),
    (["hydra.launcher.additional_parameters={output: x}"], "another option than those that the launcher sets"),
    (["hydra.launcher.additional_parameters={Odd: x}"], "sbatch's long names"),
    (["hydra.launcher.additional_parameters={reservation: 'a\nb'}"], "not beginning with '-'"),
    (["hydra.launcher.additional_parameters={nodes: 5}"], "another option than those"),
    (["hydra.launcher.srun_args=['--kill-on=0']"], "another option than those"),
    (["hydra.launcher.srun_args=[-x]"], "--name or --name=value"),
    (["hydra.launcher.partitoin=gpu"], "did you mean 'hydra.launcher.partition'?"),
    (["hydra.launcher.gpus_per_node=1", "hydra.launcher.gres='gpu:1'"], "give one of gpus_per_node, gres"),
    (["hydra.launcher.mem_gb=1", "hydra.launcher.mem_per_cpu=1G"], "give one of mem_gb, mem_per_cpu"),
    (["hydra.launcher.partition=a,b"], "is the same for all points"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[case[1][:40] for case in REFUSED])
def test_refused(words: list[str], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        resources(*words)
    assert message in str(refused.value)


def test_several_nodes_need_a_cluster() -> None:
    with pytest.raises(BadInput, match="submitit_local has one machine"):
        resources("hardware=2x8xh100", launcher="submitit_local")


def test_keys_need_their_launcher() -> None:
    with pytest.raises(BadInput, match=r"hydra.launcher.partition: no such key"):
        asked("hydra.launcher.partition=x", launcher="submitit_local")
    with pytest.raises(BadInput, match=r"choose hydra/launcher=submitit_slurm or submitit_local"):
        read_sweep("train", TrainConfig, ["hydra.launcher.nodes=2"], multirun=True)


def test_an_option_of_every_kind_reaches_submitit() -> None:
    _, how = asked(
        "hydra.launcher.partition=gpu",
        "hydra.launcher.qos=high",
        "hydra.launcher.mem_gb=1.5",
        "hydra.launcher.exclusive=true",
        "hydra.launcher.cpus_per_task=4",
        "hydra.launcher.additional_parameters={reservation: mine}",
        "hydra.launcher.srun_args=['--mpi=none']",
    )
    options = batch_options(how, Resources(2, 8, 8, 4), "n")
    assert options["srun_args"] == ["--kill-on-bad-exit=1", "--cpus-per-task=4", "--mpi=none"]
    assert options["additional_parameters"] == {"requeue": True, "reservation": "mine"}
    wanted = {"partition": "gpu", "qos": "high", "mem": "1536M", "exclusive": True, "gpus_per_node": 8, "nodes": 2}
    assert wanted.items() <= options.items()


def test_other_plugins_of_the_same_name_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """hydra-submitit-launcher stores a schema under the name that ours has."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(
        group="hydra/launcher",
        name="submitit_slurm",
        node={"_target_": "os.system", "partition": None},
        provider="other",
    )
    monkeypatch.setattr(sweep_request, "register_schemas", register_schemas)  # as in every command
    _, how = asked("hydra.launcher.qos=high")
    assert how.executor == "slurm" and how.qos == "high"


def test_a_launcher_without_a_sweep_or_without_slurm(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("sbatch"):
        monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    done = run("train.py", "-m", "hydra/launcher=submitit_slurm", "training.seed=1,2")
    assert (
        done.returncode == 5 and "no sbatch and srun on this machine" in done.stderr and "submitit_local" in done.stderr
    )
    done = run("train.py", "hydra/launcher=submitit_local")
    assert done.returncode == 2 and "add -m" in done.stderr and "nanogpt submit" in done.stderr
    done = run("train.py", "-m", "hydra/launcher=submitit_local", "training.seed=1,2", RANK="0", WORLD_SIZE="2")
    assert done.returncode == 2 and "every rank would submit" in done.stderr
    done = run("train.py", "-m", "hydra/launcher=submitit_local", "data=openwebtext", "training.seed=1,2")
    assert done.returncode == 3 and "python prepare.py data=openwebtext" in done.stderr
    done = run("train.py", "hardware.nodes=2", "model=gpt2")
    assert done.returncode == 2 and "hardware.nodes=2: needs" in done.stderr


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    """Jobs run what is in it."""
    folder = tmp_path / ".launch"
    folder.mkdir(mode=0o700)
    check_only_owner_writes(folder)
    folder.chmod(0o770)
    with pytest.raises(BadEnvironment, match="only its owner can write to"):
        check_only_owner_writes(folder)
    folder.chmod(0o700)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(BadEnvironment, match="must be a folder"):
        check_only_owner_writes(tmp_path / "link")
    if os.getuid() == 0:
        os.chown(folder, 12345, -1)
        with pytest.raises(BadEnvironment, match="belongs to another user"):
            check_only_owner_writes(folder)


def test_a_submission_is_what_was_frozen(tmp_path: Path) -> None:
    config, launcher = asked("training.seed=7")
    facts = SubmissionSpec(
        executor="slurm", launcher=launcher.model_dump(mode="json"), resources={}, code="c", cwd="w", logs="l",
        python="p", command=["x"], time=1.0, jobs=(),
    )  # fmt: skip
    study = Study(tmp_path, [])
    study.records.mkdir()
    made = create_submission(study, [PlannedRun(tmp_path / "run", config)], facts)
    again = type(made)(made.path)
    assert again.config(0) == config and again.spec == facts and again.runs == [tmp_path / "run"]
