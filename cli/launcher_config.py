"""Keys of `hydra/launcher=…`, which runs the points of a sweep. They are not part of a run's identity.

The keys are those of hydra-submitit-launcher, typed and checked; `wait`, `poll_s`, `max_requeues` and
`max_restarts_without_progress` are new. Nodes, tasks and GPUs are null by default and follow from `hardware`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from nanogpt.config.types import Count, Name
from nanogpt.fields import free
from nanogpt.json_output import FORMAT_HELP, OutputFormat
from nanogpt.schema import ConfigModel, field_error

# Options that the launcher sets or has a key for.
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
    """Raise PydanticCustomError for blanks, quotes and line breaks, which could add lines to the batch script."""
    if re.fullmatch(r"[A-Za-z0-9_.,:;@%+=/&|()*\[\]{}~-]{1,500}", text) and not text.startswith("-"):
        return text
    raise PydanticCustomError("form", "letters, digits and punctuation, no blanks, not beginning with '-'")


def check_shell_line(text: str) -> str:
    """Raise PydanticCustomError unless this is one printable line."""
    if text.isprintable() and text.strip():
        return text
    raise PydanticCustomError("form", "one printable line")


def check_srun_option(text: str) -> str:
    """Raise PydanticCustomError unless this is an option of srun that the launcher does not set."""
    name = text.removeprefix("--").partition("=")[0]
    if text.startswith("--") and text.isprintable() and not is_reserved(name):
        return text
    raise PydanticCustomError("form", f"--name or --name=value, {ALLOWED_OPTION}")


def is_reserved(name: str) -> bool:
    """Return whether this is a reserved option or an abbreviation of one, which Slurm accepts."""
    return any(option.startswith(name.replace("_", "-")) for option in RESERVED)


def check_sbatch_options(values: dict[str, Any]) -> dict[str, Any]:
    """Raise PydanticCustomError for an option of sbatch that the launcher sets, or a value with blanks."""
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
    """Runs one point after the other in this process."""

    executor: Literal["none"] = free("none", "what runs the points")


class JobLauncher(ConfigModel):
    """Keys of jobs on Slurm and on this machine."""

    name: Name | None = free(None, "name of the jobs; null: the study's name")
    nodes: int | None = free(None, "nodes per point; null: hardware.nodes", ge=1, le=10_000)
    tasks_per_node: int | None = free(None, "ranks per node; null: hardware.devices", ge=1, le=64)
    gpus_per_node: int | None = free(
        None, "GPUs per node; null: one per rank if hardware.device is cuda, else none", ge=0, le=64
    )
    timeout_min: int = free(
        60, "time limit of a job, minutes; shortly before, it saves a checkpoint and is requeued", ge=1, le=10**6
    )
    signal_delay_s: int = free(
        120, "seconds before the time limit at which a job gets the signal to save", ge=5, le=86_400
    )
    array_parallelism: Count | None = free(
        None, "maximum number of points that run at once; null: on Slurm 256, locally as many as GPUs or cores allow"
    )
    points_per_job: Count | Literal["auto"] = free(
        1,
        "points that a job runs at once on one node, each with its own GPUs or cores; auto: locally as many as fit",
    )
    setup: Annotated[tuple[Line, ...], Field(strict=False)] = free(
        (), "shell lines to run before training, e.g. module load"
    )
    wait: bool = free(True, "wait and print the state of the points until all are done; false: return after submission")
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
    def _check_time_limit(self) -> Self:
        if self.timeout_min * 60 <= self.signal_delay_s:
            least = self.signal_delay_s // 60 + 1
            why = f"leaves no time before hydra.launcher.signal_delay_s={self.signal_delay_s}; at least {least}"
            raise field_error("timeout_min", self.timeout_min, why)
        return self


class LocalLauncher(JobLauncher):
    """Runs points as processes on this machine, several at once. They outlive the terminal."""

    executor: Literal["local"] = free("local", "what runs the points")


class SlurmLauncher(JobLauncher):
    """Runs points as an array of Slurm jobs."""

    executor: Literal["slurm"] = free("slurm", "what runs the points")
    partition: Word | None = free(None, "partition, or several separated by commas; null: the cluster's default")
    account: Word | None = free(None, "account to charge; null: the cluster's default")
    qos: Word | None = free(None, "quality of service; null: the cluster's default")
    cpus_per_task: Count | None = free(None, "CPU cores per rank; null: hardware.threads, else the cluster's default")
    cpus_per_gpu: Count | None = free(None, "CPU cores per GPU, needs gpus_per_task; null: not used")
    gpus_per_task: Count | None = free(None, "GPUs bound to each rank, instead of gpus_per_node; null: not used")
    mem_gb: float | None = free(None, "memory per node in GB; null: the cluster's default", gt=0, le=1e5)
    mem_per_gpu: Word | None = free(None, "memory per GPU, e.g. 80GB; null: not used")
    mem_per_cpu: Word | None = free(None, "memory per CPU core, e.g. 4GB; null: not used")
    constraint: Word | None = free(None, "features that nodes must have, e.g. a100; null: any node")
    gres: Word | None = free(None, "generic resources instead of gpus_per_node, e.g. gpu:a100:2; null: not used")
    nodelist: Word | None = free(None, "nodes to use, e.g. n[1-4]; null: any")
    exclude: Word | None = free(None, "nodes not to use, e.g. n3; null: none")
    exclusive: bool = free(False, "run no other jobs on the nodes")
    dependency: Word | None = free(None, "jobs to wait for, e.g. afterok:1234; null: none")
    comment: Word | None = free(None, "comment of the jobs; null: none")
    mail_type: Word | None = free(None, "when to send mail, e.g. END,FAIL; null: never")
    mail_user: Word | None = free(None, "recipient of mail; null: you")
    additional_parameters: Options = free({}, "additional options of sbatch, e.g. {reservation: mine}")
    srun_args: Annotated[tuple[Option, ...], Field(strict=False)] = free(
        (), "additional options of srun, e.g. ['--mpi=none']"
    )
    submit_retries: int = free(6, "retries of a submission when slurmctld does not answer", ge=0, le=100)

    @model_validator(mode="after")
    def _check_exclusive_keys(self) -> Self:
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
        None, "study or run: a folder or its name; null: the one submitted last", literal=True, min_length=1
    )
    runs_dir: str = free("runs", "folder of all run directories", min_length=1)
    lines: Count = free(20, "logs: lines to print of each log")
    format: OutputFormat = free("text", f"status: {FORMAT_HELP}")
    rank: int = free(0, "logs: rank whose log to print", ge=0, le=10**6)
    follow: bool = free(False, "logs: keep printing new lines")
    poll_s: float = free(10.0, "wait: seconds between queries of the queue", ge=0.2, le=3600)


Launcher = BasicLauncher | LocalLauncher | SlurmLauncher
LAUNCHERS: dict[str, type[Launcher]] = {"none": BasicLauncher, "local": LocalLauncher, "slurm": SlurmLauncher}
