"""What `hydra/launcher=…` takes: how the points of a sweep are run. None of it is part of a run's identity.

The keys are those of hydra-submitit-launcher, which many know, typed and checked; `wait`, `poll_s`, `max_requeues` and
`max_restarts_without_progress` are ours. What must agree with the training (nodes, tasks, GPUs) is null and comes from
`hardware`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from nanogpt.config.types import Count, Name
from nanogpt.fields import free
from nanogpt.schema import ConfigModel, field_error

# What the launcher itself writes into the batch script, and must, or has a key for.
# fmt: off
RESERVED = (
    "account", "array", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency", "error",
    "exclude", "exclusive", "gpus", "gpus-per-node", "gpus-per-task", "gres", "input", "job-name", "kill-on-bad-exit",
    "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "no-requeue", "nodelist", "nodes", "ntasks",
    "ntasks-per-node", "open-mode", "output", "partition", "qos", "requeue", "signal", "tasks-per-node", "time",
    "wrap",
)
# fmt: on
ALLOWED_OPTION = "another option than those that the launcher sets or has a key for"


def check_slurm_word(text: str) -> str:
    """No blank, quote or line break, so a value can't become another line of the batch script."""
    if re.fullmatch(r"[A-Za-z0-9_.,:;@%+=/&|()*\[\]{}~-]{1,500}", text) and not text.startswith("-"):
        return text
    raise PydanticCustomError("form", "letters, digits and punctuation, no blanks, not beginning with '-'")


def check_shell_line(text: str) -> str:
    """One line of the batch script."""
    if text.isprintable() and text.strip():
        return text
    raise PydanticCustomError("form", "one printable line")


def check_srun_option(text: str) -> str:
    """An option of srun that the launcher doesn't set itself."""
    name = text.removeprefix("--").partition("=")[0]
    if text.startswith("--") and text.isprintable() and not is_reserved(name):
        return text
    raise PydanticCustomError("form", f"--name or --name=value, {ALLOWED_OPTION}")


def is_reserved(name: str) -> bool:
    """Whether Slurm could read a long option's name, or the beginning of one, as one of ours."""
    return any(check_srun_option.startswith(name.replace("_", "-")) for check_srun_option in RESERVED)


def check_sbatch_options(values: dict[str, Any]) -> dict[str, Any]:
    """Options of sbatch that the launcher doesn't set itself, as {name: value}."""
    for name, value in values.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or is_reserved(name):
            raise PydanticCustomError("form", f"sbatch's long names, {ALLOWED_OPTION}")
        if not isinstance(value, bool | int | str) or (isinstance(value, str) and check_slurm_word(value) != value):
            raise PydanticCustomError("form", "texts without blanks, integers and true")
    return values


Word = Annotated[str, AfterValidator(check_slurm_word)]
Line = Annotated[str, AfterValidator(check_shell_line)]
Option = Annotated[str, AfterValidator(check_srun_option)]
Options = Annotated[dict[str, Any], AfterValidator(check_sbatch_options)]


class BasicLauncher(ConfigModel):
    """One point after the other, in the process that was started."""

    executor: Literal["none"] = free("none", "what runs the points")


class JobLauncher(ConfigModel):
    """What jobs have everywhere."""

    name: Name | None = free(None, "name of the jobs; null: the study's")
    nodes: int | None = free(None, "nodes per sweep point; null: hardware.nodes", ge=1, le=10_000)
    tasks_per_node: int | None = free(None, "ranks per node; null: hardware.devices", ge=1, le=64)
    gpus_per_node: int | None = free(
        None, "GPUs per node; null: one per rank if hardware.device is cuda, else none", ge=0, le=64
    )
    timeout_min: int = free(
        60, "time limit of a job in minutes; at the limit it saves a checkpoint and is requeued", ge=1, le=10**6
    )
    signal_delay_s: int = free(
        120, "seconds before the time limit at which the job is signalled to save", ge=5, le=86_400
    )
    array_parallelism: Count | None = free(
        None, "maximum number of points running at once; null: 256 on Slurm, locally what GPUs or cores allow"
    )
    setup: Annotated[tuple[Line, ...], Field(strict=False)] = free(
        (), "shell lines to run before training, e.g. module load"
    )
    wait: bool = free(True, "wait and show the points until all are done; false: return after submission")
    poll_s: float = free(10.0, "wait: seconds between queries of the queue", ge=0.2, le=3600)
    max_requeues: int = free(100, "maximum number of requeues of a point", ge=0, le=10**6)
    max_restarts_without_progress: int = free(
        3,
        "stop requeueing a point after this many restarts in a row without a new checkpoint",
        ge=1,
        le=1000,
        was="max_fruitless",
    )

    @model_validator(mode="after")
    def _time_to_save(self) -> Self:
        if self.timeout_min * 60 <= self.signal_delay_s:
            least = self.signal_delay_s // 60 + 1
            why = f"leaves no time before hydra.launcher.signal_delay_s={self.signal_delay_s}; at least {least}"
            raise field_error("timeout_min", self.timeout_min, why)
        return self


class LocalLauncher(JobLauncher):
    """Points as processes of this machine, several at once, that outlive the terminal."""

    executor: Literal["local"] = free("local", "what runs the points")


class SlurmLauncher(JobLauncher):
    """Points as an array of Slurm jobs."""

    executor: Literal["slurm"] = free("slurm", "what runs the points")
    partition: Word | None = free(None, "partition, or several with commas; null: the cluster's default")
    account: Word | None = free(None, "account to charge; null: the cluster's default")
    qos: Word | None = free(None, "quality of service")
    cpus_per_task: Count | None = free(None, "CPU cores per rank; null: hardware.threads, else the cluster's default")
    cpus_per_gpu: Count | None = free(None, "cores for each GPU; needs gpus_per_task")
    gpus_per_task: Count | None = free(None, "GPUs bound to each rank, instead of gpus_per_node")
    mem_gb: float | None = free(None, "GB of memory on each machine; null: the cluster's default", gt=0, le=1e5)
    mem_per_gpu: Word | None = free(None, "memory for each GPU, e.g. 80GB")
    mem_per_cpu: Word | None = free(None, "memory for each core, e.g. 4GB")
    constraint: Word | None = free(None, "features the nodes must have, e.g. a100")
    gres: Word | None = free(None, "generic resources, e.g. gpu:a100:2, instead of gpus_per_node")
    nodelist: Word | None = free(None, "these nodes, e.g. n[1-4]")
    exclude: Word | None = free(None, "not these nodes")
    exclusive: bool = free(False, "no other jobs on the nodes")
    dependency: Word | None = free(None, "jobs to wait for, e.g. afterok:1234")
    comment: Word | None = free(None, "comment of the jobs")
    mail_type: Word | None = free(None, "when to write a mail, e.g. END,FAIL")
    mail_user: Word | None = free(None, "whom to write to")
    additional_parameters: Options = free({}, "other options of sbatch, e.g. {reservation: mine}")
    srun_args: Annotated[tuple[Option, ...], Field(strict=False)] = free(
        (), "more options of srun, e.g. ['--mpi=none']"
    )
    submit_retries: int = free(6, "retries of a submission when slurmctld does not answer", ge=0, le=100)

    @model_validator(mode="after")
    def _one_way_to_gpus(self) -> Self:
        given = [name for name in ("gpus_per_node", "gpus_per_task", "gres") if getattr(self, name) is not None]
        if len(given) > 1:
            raise field_error(given[1], getattr(self, given[1]), f"give one of {', '.join(given)}")
        if self.cpus_per_gpu is not None and self.gpus_per_task is None:
            raise field_error("cpus_per_gpu", self.cpus_per_gpu, "needs gpus_per_task")
        memory = [name for name in ("mem_gb", "mem_per_gpu", "mem_per_cpu") if getattr(self, name) is not None]
        if len(memory) > 1:
            raise field_error(memory[1], getattr(self, memory[1]), f"give one of {', '.join(memory)}")
        return self


class LaunchConfig(ConfigModel):
    """The study or run that a job command (status, logs, wait, cancel, retry, resubmit) works on."""

    target: str | None = free(
        None, "study or run: a folder or its name; null: what was submitted last", literal=True, min_length=1
    )
    runs_dir: str = free("runs", "folder of all run directories", min_length=1)
    lines: Count = free(20, "logs: number of lines of each log")
    rank: int = free(0, "logs: the rank whose log is shown", ge=0, le=10**6)
    follow: bool = free(False, "logs: keep printing new lines")
    poll_s: float = free(10.0, "wait: seconds between queries of the queue", ge=0.2, le=3600)


Launcher = BasicLauncher | LocalLauncher | SlurmLauncher
LAUNCHERS: dict[str, type[Launcher]] = {"none": BasicLauncher, "local": LocalLauncher, "slurm": SlurmLauncher}
