"""Slurm: submit through submitit, ask, cancel, requeue. A controller that is silent for a while is asked again."""

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

BUSY = re.compile(
    r"unable to contact|connection (refused|failure)|timed out|temporarily|socket|slurmctld|controller", re.IGNORECASE
)
ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
          "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT")  # fmt: skip
ARRAY_SIZE = 1001  # Slurm's default
SECONDS = 30.0  # that a question may take


@dataclass(frozen=True)
class Queued:
    """A job as the queue shows it."""

    state: str
    reason: str


def require_slurm() -> None:
    """Raises BadEnvironment on a machine from which nothing can be submitted."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise BadEnvironment(
            "hydra/launcher=submitit_slurm: no sbatch and srun on this machine; submit from a login node, "
            "hydra/launcher=submitit_local runs the points here, make slurm-up starts a small Slurm to try"
        )


def ask(*words: str, timeout: float = SECONDS) -> str | None:
    """What a Slurm command prints, or None when it can't be asked now."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=timeout, errors="replace", env=plain_environment()
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def plain_environment() -> dict[str, str]:
    """This process's environment without what changes what Slurm's commands show, or what another job or torchrun left
    in the shell; users' defaults for sbatch stay.
    """
    left = re.compile(
        r"(SLURM|SQUEUE|SACCT|SCONTROL|TORCHELASTIC|SUBMITIT|NANOGPT)_|(LOCAL_)?(RANK|WORLD_SIZE)$|MASTER_"
    )
    return {name: text for name, text in os.environ.items() if name == "SLURM_CONF" or not left.match(name)}


def queue() -> dict[str, Queued] | None:
    """This user's jobs by `123_4`, also those that ended minutes ago; None when the controller doesn't answer."""
    text = ask("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%i|%T|%r")
    if text is None:
        return None
    rows = (line.split("|", 2) for line in text.splitlines())
    return {row[0]: Queued(row[1], row[2]) for row in rows if len(row) == 3}


def history(jobs: Sequence[str]) -> dict[str, str]:
    """The last state of jobs that the queue forgot, by `123_4`, where there is accounting; else nothing."""
    text = ask("sacct", "-n", "-P", "-X", "-D", "-j", ",".join(jobs), "-o", "JobID,State") if jobs else None
    rows = (line.split("|") for line in (text or "").splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2}


def job_facts(job: str) -> dict[str, str]:
    """What scontrol knows of a job `123_4`, or nothing."""
    text = ask("scontrol", "show", "job", "-o", digits(job)) or ""
    if len(text.splitlines()) != 1:
        return {}
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def digits(job: str) -> str:
    """A job id that is one. Raises BadInput."""
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
        raise BadInput(f"{one_line(job)}: not a job id")
    return job


def requeue(job: str) -> None:
    """Put a running job back into the queue; while the controller is down, try again."""
    while True:
        done = subprocess.run(["scontrol", "requeue", digits(job)], capture_output=True, text=True)
        if done.returncode == 0:
            return
        print(f"scontrol requeue: {done.stderr.strip()}", flush=True)
        if not BUSY.search(done.stderr):
            return
        time.sleep(5)


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs. Raises BadEnvironment when the controller doesn't take it."""
    for first in range(0, len(jobs), 200):  # a command line has an end
        words = ["scancel", *(digits(job) for job in jobs[first : first + 200])]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode and not re.search(r"already|invalid job id", done.stderr, re.IGNORECASE):
            raise BadEnvironment(
                f"scancel: {one_line(done.stderr.strip(), 300)}; nothing more was cancelled, try again"
            )


def array_limit() -> int:
    """The most points one array may have here."""
    found = re.search(r"^MaxArraySize\s*=\s*([0-9]+)", ask("scontrol", "show", "config") or "", re.MULTILINE)
    return max(1, int(found[1]) - 1) if found else ARRAY_SIZE - 1


def submit(parameters: dict[str, Any], logs: Path, count: int, command: list[str], retries: int) -> str:
    """Hand an array of `count` jobs to Slurm through submitit; {job id}. The batch script stays beside the logs.

    A controller that doesn't answer is asked again, after a look whether it has taken the job all the same: its name is
    unique. Raises BadEnvironment when it stays silent, BadInput when sbatch refuses.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor  # a tenth of a second that only submitting waits for

    class Array(SlurmExecutor):
        """submitit's batch script and options around a command of ours: nothing is pickled, and nothing unpickled."""

        def hand_over(self) -> str:
            self.parameters["map_count"] = count
            with environment(plain_environment()):
                return self._submit_command(shlex.join(command)).job_id

    executor = Array(logs)
    try:
        executor.update_parameters(**parameters)
    except ValueError as error:
        raise BadInput(f"hydra.launcher: {one_line(error, 300)}") from None
    why, pause = "", 1.0
    for left in range(retries, -1, -1):
        try:
            if why and (taken := find(parameters["job_name"])):  # it was taken, though sbatch heard nothing of it
                return taken
            return executor.hand_over()
        except (FailedJobError, FailedSubmissionError) as error:
            why = said(str(error))
            if not BUSY.search(why):
                raise BadInput(f"sbatch refuses: {one_line(why, 300)}{which_cluster(why)}") from None
        except BadEnvironment as error:  # squeue is silent too, and without its answer nothing may be tried again
            why = str(error)
        if left:
            print(f"sbatch: {one_line(why, 200)}; trying again in {pause:.0f} s ({left} left)", flush=True)
            time.sleep(pause)
            pause = min(2 * pause, 30.0)
    raise BadEnvironment(f"sbatch: {one_line(why, 300)}; the same command again submits what is missing")


@contextmanager
def environment(values: dict[str, str]) -> Generator[None, None, None]:
    """While inside, this process's environment is this one, and so that of what it starts; sbatch hands it to jobs."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def which_cluster(why: str) -> str:
    """What an error means that is about Slurm's own file, or nothing."""
    if not re.search(r"resolve_ctls|fetch_config|configuration source|slurm\.conf", why):
        return ""
    file = os.environ.get("SLURM_CONF")
    if file is None:
        return "; SLURM_CONF isn't set: export what make slurm-up said"
    return f"; SLURM_CONF={one_line(file)}{'' if os.path.exists(file) else ': no such file, is that cluster down?'}"


def said(text: str) -> str:
    """What sbatch itself said, out of an error of submitit."""
    lines = [line.strip() for line in text.splitlines() if "sbatch:" in line]
    return " ".join(line.replace("sbatch: error: ", "").replace("sbatch: ", "") for line in lines) or text.strip()


def find(name: str) -> str | None:
    """The id of the array with this name, which is unique, if Slurm has it. Raises BadEnvironment when it is silent."""
    text = ask("squeue", "-h", "-t", "all", "-u", str(os.getuid()), "-n", name, "-o", "%F")
    if text is None:
        raise BadEnvironment("squeue: Slurm doesn't answer, so nobody can tell what it has; try again later")
    ids = text.split()
    return ids[0] if ids else None
