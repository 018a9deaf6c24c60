"""A queue on this machine: `python -m launch.local SUBMISSION` runs its points in parallel, detached from the
terminal.

Each point runs under submitit's local controller, which keeps its logs, signals it before the time limit, and passes
SIGTERM on. Interrupted points are requeued by the same rules as on Slurm.
"""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from cli.entry import exit_on_error
from launch.job import ATTEMPT, INDEX, Attempt, begin_attempt, explain_stop, judge_attempt
from launch.resources import visible_gpus
from launch.slurm import clean_environment, replace_environment
from launch.submission import Submission
from nanogpt.child_process import python_path
from nanogpt.cpu_threads import share_cores
from nanogpt.run_directory import newest_step
from nanogpt.run_state import read_process_strings

POLL_S = 0.2  # seconds between checks of the running points
LOCK = "pool.lock"


def start_pool(submission: Submission) -> int:
    """Start the queue in a new process. Return its id."""
    spec = submission.spec
    command = [spec.python, "-u", "-m", "launch.local", str(submission.path.absolute())]
    return start_in_background(command, spec.code, submission.path / "pool.log")


def start_in_background(command: list[str], code: str, log: Path) -> int:
    """Start a process that outlives this one, with the code in a folder. Return its id."""
    with log.open("a") as file:
        process = subprocess.Popen(
            command,
            cwd=code,
            env=clean_environment() | {"PYTHONPATH": python_path(code)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    process.returncode = 0  # keeps Python from warning that it wasn't waited for
    return process.pid


def is_pool_alive(submission: Submission) -> bool:
    """Return whether the queue of a submission runs: it holds a lock as long as it does."""
    path = submission.path / LOCK
    if not path.exists():
        return time.time() - submission.spec.time < 30  # Python is being loaded
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def is_controller(job: str) -> bool:
    """Return whether the process that runs a point is alive, though its queue may not be."""
    return job.isdecimal() and any(b"submitit" in word for word in read_process_strings(int(job), "cmdline"))


def stop_point(job: str) -> None:
    """Send SIGTERM to the process that runs a point; its ranks save first."""
    if is_controller(job):
        with suppress(ProcessLookupError):
            os.kill(int(job), signal.SIGTERM)


class Pool:
    """The points that are waiting and those that run."""

    def __init__(self, submission: Submission) -> None:
        self.submission, self.spec = submission, submission.spec
        self.waiting = list(range(len(submission.runs)))
        self.running: dict[int, tuple[Any, int]] = {}
        """submitit's job and the slot, by point."""
        self.attempts = [0] * len(self.waiting)
        self.n_slots = count_slots(submission.launcher.array_parallelism, self.spec.resources)
        self.slots: dict[int, TextIO] = {}
        """Locks of the slots that this queue uses. A slot has its GPUs, and all queues of a study share the slots."""
        self.stopping = False

    def run(self) -> None:
        """Run all points; return early, once those that run have ended, if `stop` was called."""
        while self.running or (self.waiting and not self.stopping):
            while self.waiting and not self.stopping and (slot := self.take_slot()) is not None:
                self.begin(self.waiting.pop(0), slot)
            for index, (job, slot) in list(self.running.items()):
                if job.done():
                    del self.running[index]
                    self.slots.pop(slot).close()
                    self.end(index)
            time.sleep(POLL_S)

    def take_slot(self) -> int | None:
        """Return a slot that no queue of this study uses, or None. It is free again once this process has ended."""
        for slot in set(range(self.n_slots)) - self.slots.keys():
            file = (self.submission.path.parent / f"slot-{slot}.lock").open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
            else:
                self.slots[slot] = file
                return slot
        return None

    def begin(self, index: int, slot: int) -> None:
        """Start a point in a slot, unless it was cancelled meanwhile."""
        if self.has_ended(index):
            self.slots.pop(slot).close()
            return
        job = self.start_job(index, slot)
        with self.job_environment(index, job.job_id):
            if begin_attempt(Attempt(self.submission.path, 0)):
                job.cancel()
        self.running[index] = (job, slot)

    def start_job(self, index: int, slot: int) -> Any:
        """Start submitit's controller and the point's ranks under it. Return submitit's job."""
        from submitit.local.local import LocalExecutor

        class CommandExecutor(LocalExecutor):
            """submitit's controller for a shell command: nothing is pickled."""

            def submit_command(self, command: str) -> Any:
                return self._submit_command(command)

        executor = CommandExecutor(self.spec.logs)
        executor.update_parameters(
            tasks_per_node=self.spec.resources["tasks_per_node"],
            timeout_min=self.submission.launcher.timeout_min,
            signal_delay_s=self.submission.launcher.signal_delay_s,
            stderr_to_stdout=True,
        )
        os.environ.update({INDEX: str(index), ATTEMPT: str(self.attempts[index])})
        return executor.submit_command(shlex.join(self.command(slot)))

    def command(self, slot: int) -> list[str]:
        """Return the command of one rank. It replaces the shell, so that signals reach it; its GPUs are those of the
        slot.
        """
        each = self.spec.resources["gpus_per_node"]
        gpus = ",".join(visible_gpus()[slot * each : (slot + 1) * each])
        rank = [self.spec.python, "-u", "-m", "launch.job", "task", str(self.submission.path), "0"]
        lines = [*self.submission.launcher.setup, f"export CUDA_VISIBLE_DEVICES={gpus}"]
        if (points := self.spec.resources.get("points_per_job", 1)) > 1:
            cores = share_cores(points * self.spec.resources["tasks_per_node"])
            lines.append(f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{cores}}}")
        return ["bash", "-c", "\n".join([*lines, f"exec {shlex.join(rank)}"])]

    def job_environment(self, index: int, job: str) -> AbstractContextManager[None]:
        """Set this process's environment to that of a point's job while inside."""
        point = {INDEX: str(index), ATTEMPT: str(self.attempts[index]), "SUBMITIT_LOCAL_JOB_ID": job}
        return replace_environment(dict(os.environ) | point)

    def end(self, index: int) -> None:
        """Decide what becomes of a point whose ranks ended, and requeue it if so."""
        if self.has_ended(index) or self.stopping:
            return
        job = next(event["job"] for event in reversed(self.submission.events(index)) if event["event"] == "start")
        with self.job_environment(index, job):
            attempt = Attempt(self.submission.path, 0)
            state, why, code = judge_attempt(attempt)
            why = explain_stop(attempt, {}) if why == "asked to stop" else why
        self.submission.add_event(index, "end", state=state, why=why, code=code, step=newest_step(attempt.run))
        if state == "requeued":
            self.attempts[index] += 1
            self.waiting.append(index)

    def has_ended(self, index: int) -> bool:
        """Return whether the point was cancelled or its start was refused."""
        events = self.submission.events(index)
        return bool(events) and events[-1].get("state") in ("cancelled", "failed")

    def stop(self, _number: int, _: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT: stop everything that runs and start nothing more."""
        self.stopping = True
        for index, (job, _slot) in self.running.items():
            self.submission.add_event(index, "end", state="cancelled", why="the queue was stopped", step=0)
            with suppress(ProcessLookupError):  # it ended a moment ago
                os.kill(int(job.job_id), signal.SIGTERM)


def count_slots(wanted: int | None, resources: Mapping[str, Any]) -> int:
    """Return how many points run at once: `wanted`, or as many as GPUs or cores allow."""
    each, points = resources["gpus_per_node"], resources.get("points_per_job", 1)
    if points > 1:
        return points
    if each:
        most = max(1, len(visible_gpus()) // each)
        return min(wanted, most) if wanted else most
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = resources["cpus_per_task"]
    most = cores // (resources["tasks_per_node"] * threads) if threads else 1
    return wanted or max(1, most)


def main() -> int:
    """Run the queue of the submission that the command line names. Return 0."""
    submission = Submission(Path(sys.argv[1]))
    with (submission.path / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pool = Pool(submission)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, pool.stop)
        pool.run()
    return 0


if __name__ == "__main__":
    exit_on_error("local", main)
