"""Slurm's commands: submit through submitit, query, cancel, requeue. If slurmctld does not answer, they are retried."""

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt.errors import BadEnvironment, BadInput, one_line

CONTROLLER_BUSY = re.compile(
    r"unable to contact|connection (refused|failure)|timed out|temporarily|socket|slurmctld|controller", re.IGNORECASE
)
ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
          "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT")  # fmt: skip
ARRAY_SIZE = 1001  # Slurm's default
QUERY_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class QueueEntry:
    """State and reason of a job in the queue."""

    state: str
    reason: str


def check_slurm_available() -> None:
    """Raise BadEnvironment on a machine without sbatch and srun."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise BadEnvironment(
            "hydra/launcher=submitit_slurm: no sbatch and srun on this machine; submit from a login node, run "
            "the points here with hydra/launcher=submitit_local, or start a small test cluster: "
            "python -m launch.slurm_sandbox up"
        )


def query(*words: str, timeout: float = QUERY_TIMEOUT_S) -> str | None:
    """Return the output of a Slurm command, or None if it fails or times out."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=timeout, errors="replace", env=clean_environment()
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def clean_environment() -> dict[str, str]:
    """Return this process's environment without variables that change the output of Slurm's commands or that belong to
    another job or torchrun; users' defaults for sbatch stay.
    """
    left = re.compile(
        r"(SLURM|SQUEUE|SACCT|SCONTROL|TORCHELASTIC|SUBMITIT|NANOGPT)_|(LOCAL_)?(RANK|WORLD_SIZE)$|MASTER_"
    )
    return {name: text for name, text in os.environ.items() if name == "SLURM_CONF" or not left.match(name)}


def list_jobs() -> dict[str, QueueEntry] | None:
    """Return this user's jobs by `123_4`, recently ended ones too; None if slurmctld doesn't answer."""
    text = query("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%i|%T|%r")
    if text is None:
        return None
    rows = (line.split("|", 2) for line in text.splitlines())
    return {row[0]: QueueEntry(row[1], row[2]) for row in rows if len(row) == 3}


def read_accounting(jobs: Sequence[str]) -> dict[str, str]:
    """Return the last state of jobs by `123_4` from sacct; empty without accounting."""
    text = query("sacct", "-n", "-P", "-X", "-D", "-j", ",".join(jobs), "-o", "JobID,State") if jobs else None
    rows = (line.split("|") for line in (text or "").splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2}


def show_job(job: str) -> dict[str, str]:
    """Return what scontrol shows of a job `123_4`; empty if it is unknown."""
    text = query("scontrol", "show", "job", "-o", check_job_id(job)) or ""
    if len(text.splitlines()) != 1:
        return {}
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def check_job_id(job: str) -> str:
    """Return `job` if it is a job id. Raises BadInput."""
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
        raise BadInput(f"{one_line(job)}: not a job id")
    return job


def requeue(job: str) -> None:
    """Requeue a running job; retry while slurmctld is down."""
    while True:
        done = subprocess.run(["scontrol", "requeue", check_job_id(job)], capture_output=True, text=True)
        if done.returncode == 0:
            return
        print(f"scontrol requeue: {done.stderr.strip()}", flush=True)
        if not CONTROLLER_BUSY.search(done.stderr):
            return
        time.sleep(5)


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs. Raises BadEnvironment if slurmctld refuses."""
    for first in range(0, len(jobs), 200):  # command lines have a maximum length
        words = ["scancel", *(check_job_id(job) for job in jobs[first : first + 200])]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode and not re.search(r"already|invalid job id", done.stderr, re.IGNORECASE):
            raise BadEnvironment(
                f"scancel: {one_line(done.stderr.strip(), 300)}; nothing more was cancelled, try again"
            )


def array_limit() -> int:
    """Return the most points that one job array may have."""
    found = re.search(r"^MaxArraySize\s*=\s*([0-9]+)", query("scontrol", "show", "config") or "", re.MULTILINE)
    return max(1, int(found[1]) - 1) if found else ARRAY_SIZE - 1


def setup_lines(setup: Sequence[str], code: str) -> list[str]:
    """Return the lines of a batch script before its command, which runs the code in a folder.

    `setup` are lines of the user. The shell ignores the signals that ask a job to save.
    """
    code = shlex.quote(code)
    return [
        *setup,
        "set +eu +o pipefail",  # undo what the lines above set: the rest must run
        f"cd {code} || exit 5",
        f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}",
        "trap '' USR1 USR2",
    ]


def submit_array(parameters: dict[str, Any], logs: Path, count: int, command: list[str], retries: int) -> str:
    """Submit an array of `count` jobs through submitit and return its id. The batch script stays beside the logs.

    If slurmctld doesn't answer, retry after checking by the job's unique name whether it was accepted after all. Raises
    BadEnvironment if it never answers, BadInput if sbatch refuses.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor  # slow to import

    class Array(SlurmExecutor):
        """submitit's batch script and options for a shell command: nothing is pickled."""

        def submit_command(self) -> str:
            self.parameters["map_count"] = count
            with replace_environment(clean_environment()):
                return self._submit_command(shlex.join(command)).job_id

    executor = Array(logs)
    try:
        executor.update_parameters(**parameters)
    except ValueError as error:
        raise BadInput(f"hydra.launcher: {one_line(error, 300)}") from None
    why, pause = "", 1.0
    for left in range(retries, -1, -1):
        try:
            # slurmctld may have accepted the job although sbatch got no answer
            accepted = find_job_by_name(parameters["job_name"]) if why else None
            return accepted or executor.submit_command()
        except (FailedJobError, FailedSubmissionError) as error:
            why = extract_sbatch_message(str(error))
            if not CONTROLLER_BUSY.search(why):
                raise BadInput(f"sbatch refuses: {one_line(why, 300)}{explain_configuration_error(why)}") from None
        except BadEnvironment as error:  # squeue got no answer either: submitting again could duplicate the job
            why = str(error)
        if left:
            print(f"sbatch: {one_line(why, 200)}; trying again in {pause:.0f} s ({left} left)", flush=True)
            time.sleep(pause)
            pause = min(2 * pause, 30.0)
    raise BadEnvironment(f"sbatch: {one_line(why, 300)}; run the same command again to submit the rest")


@contextmanager
def replace_environment(values: dict[str, str]) -> Generator[None, None, None]:
    """Replace this process's environment while inside; child processes inherit it, and sbatch hands it to jobs."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def explain_configuration_error(why: str) -> str:
    """Return a hint if an error is about Slurm's configuration file, else an empty string."""
    if not re.search(r"resolve_ctls|fetch_config|configuration source|slurm\.conf", why):
        return ""
    file = os.environ.get("SLURM_CONF")
    if file is None:
        return "; SLURM_CONF isn't set: export the line that make slurm-up printed"
    return f"; SLURM_CONF={one_line(file)}{'' if os.path.exists(file) else ': no such file, is that cluster down?'}"


def extract_sbatch_message(text: str) -> str:
    """Return sbatch's own message from an error of submitit."""
    lines = [line.strip() for line in text.splitlines() if "sbatch:" in line]
    return " ".join(line.replace("sbatch: error: ", "").replace("sbatch: ", "") for line in lines) or text.strip()


def find_job_by_name(name: str) -> str | None:
    """Return the id of the array with this unique name, or None. Raises BadEnvironment if slurmctld doesn't answer."""
    text = query("squeue", "-h", "-t", "all", "-u", str(os.getuid()), "-n", name, "-o", "%F")
    if text is None:
        raise BadEnvironment("squeue: Slurm doesn't answer, so earlier submissions are unknown; try again later")
    ids = text.split()
    return ids[0] if ids else None
