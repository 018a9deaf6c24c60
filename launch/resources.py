"""Nodes, ranks, GPUs and cores of each point, from `hardware` and the launcher. Ranks = nodes x tasks_per_node."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cli.launcher_config import JobLauncher, SlurmLauncher
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.cpu_threads import share_cores
from nanogpt.errors import BadInput


@dataclass(frozen=True)
class Resources:
    """Nodes, ranks, GPUs and cores of one point."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int | None
    points_per_job: int = 1
    """Points that run at once in one job, each with these resources."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.tasks_per_node

    def describe(self) -> str:
        """Return one line for the terminal, e.g. `1 node x 2 ranks, 2 GPUs a node`."""
        nodes, ranks = ("s" if count > 1 else "" for count in (self.nodes, self.tasks_per_node))
        words = [f"{self.nodes} node{nodes} x {self.tasks_per_node} rank{ranks}"]
        words.append(f"{self.gpus_per_node} GPUs a node" if self.gpus_per_node else "no GPU")
        words += [f"{self.cpus_per_task} cores a rank"] if self.cpus_per_task else []
        return ", ".join(words + ([f"{self.points_per_job} points per job"] if self.points_per_job > 1 else []))


def compute_resources(config: TrainConfig, launcher: JobLauncher) -> Resources:
    """Return what `hardware` and the launcher's keys ask for. Raises BadInput if they contradict each other."""
    hardware = config.hardware
    nodes = reconcile("nodes", launcher.nodes, "hardware.nodes", hardware.nodes)
    tasks = reconcile("tasks_per_node", launcher.tasks_per_node, "hardware.devices", hardware.devices)
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
    found = Resources(nodes, tasks, gpus, cpus)
    return found if launcher.points_per_job == 1 else replace(found, points_per_job=pack_points(launcher, found))


def pack_points(launcher: JobLauncher, point: Resources) -> int:
    """Return how many points a job runs at once. Raises BadInput for what one node can't run."""
    wanted = launcher.points_per_job
    key = f"hydra.launcher.points_per_job={wanted}"
    if point.nodes > 1:
        raise BadInput(f"{key}: several points share a node, and each of these needs {point.nodes}")
    if isinstance(launcher, SlurmLauncher):
        if wanted == "auto":
            raise BadInput(f"{key}: the GPUs and cores of Slurm's nodes aren't known here; give a number")
        if launcher.gres is not None:
            why = "points that share a node need gpus_per_node or gpus_per_task; constraint chooses the kind of GPU"
            raise BadInput(f"hydra.launcher.gres={launcher.gres}: {why}")
        return wanted
    gpus = len(visible_gpus())
    most = (
        gpus // point.gpus_per_node
        if point.gpus_per_node
        else share_cores(point.tasks_per_node) // (point.cpus_per_task or 1)
    )
    if wanted != "auto" and point.gpus_per_node and wanted > most:
        raise BadInput(f"{key}: this machine has {gpus} GPUs, and a point needs {point.gpus_per_node}")
    points = max(1, most) if wanted == "auto" else wanted
    if launcher.array_parallelism not in (None, points):
        why = f"hydra.launcher.points_per_job={points} is the number of points at once on this machine; leave out one"
        raise BadInput(f"hydra.launcher.array_parallelism={launcher.array_parallelism}: {why}")
    return points


def reconcile(name: str, mine: int | None, key: str, theirs: int | None) -> int:
    """Return the number given by either key, 1 if neither gives it. Raises BadInput if both do and they differ."""
    if mine is not None and theirs is not None and mine != theirs:
        raise BadInput(f"hydra.launcher.{name}={mine}: but {key}={theirs}; leave out one of them")
    return mine or theirs or 1


def has_gpus(launcher: JobLauncher) -> bool:
    """Return whether hardware.device=auto will find GPUs. On a cluster they must be requested, so the answer is no."""
    return not isinstance(launcher, SlurmLauncher) and bool(visible_gpus())


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, as numbers or as in CUDA_VISIBLE_DEVICES. Needs no torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [word.strip() for word in named.split(",") if word.strip()]
    numbers = (re.fullmatch(r"nvidia([0-9]+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return [str(number) for number in sorted(int(match[1]) for match in numbers if match)]


def with_ranks(config: TrainConfig, resources: Resources) -> TrainConfig:
    """Return the config with these nodes and ranks. Raises BadInput if they don't divide its batch."""
    where = {"nodes": resources.nodes, "devices": resources.tasks_per_node}
    placed = config.model_copy(update={"hardware": config.hardware.model_copy(update=where)})
    schema.run_check(lambda: placed.check_ranks_divide_batch(resources.ranks, "nodes x tasks_per_node"))
    return placed


def batch_options(launcher: SlurmLauncher, resources: Resources, name: str) -> dict[str, Any]:
    """Return submitit's parameters for the batch script, except its commands."""
    points = resources.points_per_job
    own = ("partition", "account", "qos", "cpus_per_gpu", "gpus_per_task", "mem_per_gpu", "mem_per_cpu", "constraint",
           "gres", "nodelist", "exclude", "dependency", "comment", "mail_type", "mail_user")  # fmt: skip
    options: dict[str, Any] = {key: value for key in own if (value := getattr(launcher, key)) is not None}
    options |= {"exclusive": True} if launcher.exclusive else {}
    options |= {"mem": format_memory(launcher.mem_gb * points)} if launcher.mem_gb else {}
    options |= {"gpus_per_node": resources.gpus_per_node * points} if resources.gpus_per_node else {}
    options |= {"cpus_per_task": resources.cpus_per_task} if resources.cpus_per_task else {}
    # srun of Slurm >= 22.05 doesn't take the batch script's cores by itself
    cores = [f"--cpus-per-task={resources.cpus_per_task}"] if resources.cpus_per_task else []
    # one rank's end is that of its point, but not of other points
    ends = ["--kill-on-bad-exit=1"] if points == 1 else ["--kill-on-bad-exit=0", "--wait=0"]
    return options | {
        "job_name": name,
        "time": launcher.timeout_min,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node * points,
        "signal_delay_s": launcher.signal_delay_s,
        "array_parallelism": launcher.array_parallelism or 256,
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": {"requeue": True} | launcher.additional_parameters,
        "srun_args": [*ends, *cores, *launcher.srun_args],
    }


def format_memory(gigabytes: float) -> str:
    """Return gigabytes as sbatch takes them, e.g. `16384M`."""
    return f"{round(gigabytes * 1024)}M"
