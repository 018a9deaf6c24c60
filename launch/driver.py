"""A search as a job: with hydra.launcher.wait=false its command runs in the background of this machine, or on Slurm.

<study>/.launch/driver.json   the process or job that was started last
<study>/.launch/driver.exit   its exit code

    python -m launch.driver FOLDER EXIT WORDS   runs `train.py WORDS` in FOLDER, with the code of the current folder,
                                                and writes its exit code to the file EXIT
"""

import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

from cli.commands import call_command
from cli.entry import exit_on_error
from cli.launcher_config import JobLauncher, SlurmLauncher
from launch import local, slurm
from launch.resources import Resources, batch_options
from launch.snapshot import snapshot
from launch.study import Study
from launch.submission import lock_records
from nanogpt import schema
from nanogpt.errors import LabError, Locked, one_line
from nanogpt.files import read_text, write_atomic
from nanogpt.run_state import is_alive, read_start_time
from nanogpt.schema import ConfigModel

FILE, EXIT = "driver.json", "driver.exit"
SIGNALLED = 128 + signal.SIGUSR2  # exit code of a driver that Slurm sent this signal before its time limit
NOT_FOR_DRIVERS = {"gpus_per_task": None, "gres": None, "cpus_per_gpu": None, "mem_per_gpu": None, "dependency": None,
                   "exclusive": False, "srun_args": ()}  # fmt: skip


class Driver(ConfigModel):
    """The process or job that runs a search."""

    executor: Literal["local", "slurm"]
    job: str
    """Process id, or Slurm's id of the job."""
    started: int | None
    """Start time of the process, in ticks since the machine started."""
    host: str
    log: str

    @property
    def state(self) -> str:
        """Return running, queued, ended, or unknown for a process of another machine or if Slurm does not answer."""
        if self.executor == "local":
            if self.host != socket.gethostname():
                return "unknown"
            return "running" if is_alive(int(self.job), self.started) else "ended"
        jobs = slurm.list_jobs()
        if jobs is None:
            return "unknown"
        state = jobs[self.job].state if self.job in jobs else ""
        return "ended" if state not in slurm.ACTIVE else "running" if state == "RUNNING" else "queued"

    @property
    def in_progress(self) -> bool:
        return self.state in ("running", "queued")

    def stop(self) -> None:
        """End the driver. The jobs that it started go on. Raises BadEnvironment."""
        if self.in_progress:
            if self.executor == "slurm":
                slurm.cancel([self.job])
            else:
                os.kill(int(self.job), signal.SIGTERM)


def read_driver(study: Path) -> Driver | None:
    """Return the driver that was started last in a study, if there is one. Raises BadCheckpoint."""
    path = Study(study, []).records / FILE
    return schema.read_config(Driver, path) if path.exists() else None


def read_exit_code(study: Path) -> int | None:
    """Return the exit code of the driver that was started last; None if it did not come to its end."""
    path = Study(study, []).records / EXIT
    text = read_text(path).strip() if path.exists() else ""
    return int(text) if text.isdecimal() else None


def start_driver(study: Study, launcher: JobLauncher) -> Driver:
    """Run the command of this process as a job. Raises Locked if one runs already, and LabError."""
    with lock_records(study):
        driver = read_driver(study.path)
        if driver and driver.in_progress:
            raise Locked(f"{one_line(study.path)}: another process runs this search: job {driver.job}")
        code = str(snapshot((study.records / "code").absolute()))
        end = (study.records / EXIT).absolute()
        end.unlink(missing_ok=True)
        words = [*sys.argv[1:], "hydra.launcher.wait=true"]
        command = [sys.executable, "-u", "-m", "launch.driver", str(Path.cwd()), str(end), *words]
        start = start_on_slurm if isinstance(launcher, SlurmLauncher) else start_here
        driver = start(study, launcher, command, code)
        write_atomic(study.records / FILE, schema.to_json(driver))
    return driver


def start_here(study: Study, _: JobLauncher, command: list[str], code: str) -> Driver:
    log = (study.logs / "driver.log").absolute()
    pid = local.start_in_background(command, code, log)
    return Driver(executor="local", job=str(pid), started=read_start_time(pid), host=socket.gethostname(), log=str(log))


def start_on_slurm(study: Study, launcher: JobLauncher, command: list[str], code: str) -> Driver:
    """Submit a job with one core and no GPU; it is requeued before its time limit."""
    assert isinstance(launcher, SlurmLauncher)
    own = launcher.model_copy(update=NOT_FOR_DRIVERS)
    name = f"{launcher.name or study.path.name}-search-{secrets.token_hex(3)}"
    job = '"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"'
    lines = {
        "setup": slurm.setup_lines(launcher.setup, code),
        "teardown": [
            "code=$?",
            f"[ $code -ne {SIGNALLED} ] || {{ scontrol requeue {job}; sleep 60; }}",
            "exit $code",
        ],
    }
    options = batch_options(own, Resources(1, 1, 0, 1), name) | lines
    array = slurm.submit_array(options, study.logs.absolute(), 1, command, launcher.submit_retries)
    log = study.logs.absolute() / f"{array}_0_0_log.out"
    return Driver(executor="slurm", job=f"{array}_0", started=None, host=socket.gethostname(), log=str(log))


def exit_at_once(_number: int, _: FrameType | None) -> None:
    """Handle SIGUSR2: a search can end at any time, and its job is requeued."""
    os._exit(SIGNALLED)


def run_search(end: Path) -> int:
    """Run the command of sys.argv and write its exit code to a file. Return the code. Raises LabError."""
    code = 1
    try:
        code = call_command("train")
    except LabError as error:
        code = error.exit_code
        raise
    finally:
        write_atomic(end, f"{code}\n")
    return code


def main() -> NoReturn:
    """Run the command that the words are for."""
    signal.signal(signal.SIGUSR2, exit_at_once)
    folder, end, *words = sys.argv[1:]
    os.chdir(folder)
    sys.argv = ["train.py", *words]
    exit_on_error("train", lambda: run_search(Path(end)))


if __name__ == "__main__":
    main()
