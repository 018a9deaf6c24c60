"""What the points need of machines: from `hardware`, so it can't disagree with the training, and from the launcher.

R ranks of a point = nodes x tasks_per_node.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.launcher_config import JobLauncher, SlurmLauncher
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput


@dataclass(frozen=True)
class Resources:
    """Of one point."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int | None

    @property
    def ranks(self) -> int:
        return self.nodes * self.tasks_per_node

    def line(self) -> str:
        """For a person."""
        nodes, ranks = ("s" if count > 1 else "" for count in (self.nodes, self.tasks_per_node))
        words = [f"{self.nodes} node{nodes} x {self.tasks_per_node} rank{ranks}"]
        words.append(f"{self.gpus_per_node} GPUs a node" if self.gpus_per_node else "no GPU")
        return ", ".join(words + ([f"{self.cpus_per_task} cores a rank"] if self.cpus_per_task else []))


def resources_of(config: TrainConfig, launcher: JobLauncher) -> Resources:
    """What the launcher's keys and `hardware` say together. Raises BadInput where they contradict each other."""
    hardware = config.hardware
    nodes = agreed("nodes", launcher.nodes, "hardware.nodes", hardware.nodes)
    tasks = agreed("tasks_per_node", launcher.tasks_per_node, "hardware.devices", hardware.devices)
    gpus = launcher.gpus_per_node
    cpus = hardware.threads
    other_gpus = False
    if isinstance(launcher, SlurmLauncher):
        cpus = launcher.cpus_per_task or cpus
        other_gpus = launcher.gres is not None or launcher.gpus_per_task is not None
    if gpus is None:
        wants = hardware.device.startswith("cuda") or (hardware.device == "auto" and has_gpus(launcher))
        gpus = tasks if wants and not other_gpus else 0
    elif hardware.device == "cpu" and gpus:
        raise BadInput(f"hydra.launcher.gpus_per_node={gpus}: but hardware.device=cpu")
    elif gpus > tasks:
        why = "a rank has one GPU; more ranks: hydra.launcher.tasks_per_node or hardware.devices"
        raise BadInput(f"hydra.launcher.gpus_per_node={gpus}: more than the {tasks} ranks on a node; {why}")
    elif 0 < gpus < tasks:
        raise BadInput(f"hydra.launcher.gpus_per_node={gpus}: too few for the {tasks} ranks on a node")
    if nodes > 1 and not isinstance(launcher, SlurmLauncher):
        raise BadInput(f"hardware.nodes={nodes}: hydra/launcher=submitit_local has one machine")
    return Resources(nodes, tasks, gpus, cpus)


def agreed(name: str, mine: int | None, key: str, theirs: int | None) -> int:
    """The one number, whoever gives it. Raises BadInput for two."""
    if mine is not None and theirs is not None and mine != theirs:
        raise BadInput(f"hydra.launcher.{name}={mine}: but {key}={theirs}; leave out one of them")
    return mine or theirs or 1


def has_gpus(launcher: JobLauncher) -> bool:
    """Whether hardware.device=auto will find GPUs: here they can be counted, on a cluster they must be asked for."""
    return not isinstance(launcher, SlurmLauncher) and bool(visible_gpus())


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, by number or as CUDA_VISIBLE_DEVICES names them. Without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [word.strip() for word in named.split(",") if word.strip()]
    numbers = (re.fullmatch(r"nvidia([0-9]+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return [str(number) for number in sorted(int(one[1]) for one in numbers if one)]


def placed(config: TrainConfig, resources: Resources) -> TrainConfig:
    """The config with just these nodes and ranks. Raises BadInput when they don't divide its batch."""
    where = {"nodes": resources.nodes, "devices": resources.tasks_per_node}
    placed = config.model_copy(update={"hardware": config.hardware.model_copy(update=where)})
    schema.run_check(lambda: placed.check_ranks_divide_batch(resources.ranks, "nodes x tasks_per_node"))
    return placed


def batch_options(launcher: SlurmLauncher, resources: Resources, name: str) -> dict[str, Any]:
    """submitit's parameters of the batch script, without its commands."""
    own = ("partition", "account", "qos", "cpus_per_gpu", "gpus_per_task", "mem_per_gpu", "mem_per_cpu", "constraint",
           "gres", "nodelist", "exclude", "dependency", "comment", "mail_type", "mail_user")  # fmt: skip
    options: dict[str, Any] = {key: value for key in own if (value := getattr(launcher, key)) is not None}
    options |= {"exclusive": True} if launcher.exclusive else {}
    options |= {"mem": memory(launcher.mem_gb)} if launcher.mem_gb else {}
    options |= {"gpus_per_node": resources.gpus_per_node} if resources.gpus_per_node else {}
    options |= {"cpus_per_task": resources.cpus_per_task} if resources.cpus_per_task else {}
    # srun of Slurm >= 22.05 doesn't take the batch script's cores by itself
    cores = [f"--cpus-per-task={resources.cpus_per_task}"] if resources.cpus_per_task else []
    return options | {
        "job_name": name,
        "time": launcher.timeout_min,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "signal_delay_s": launcher.signal_delay_s,
        "array_parallelism": launcher.array_parallelism or 256,
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": {"requeue": True} | launcher.additional_parameters,
        "srun_args": ["--kill-on-bad-exit=1", *cores, *launcher.srun_args],
    }


def memory(gigabytes: float) -> str:
    """As sbatch takes it."""
    return f"{round(gigabytes * 1024)}M"
