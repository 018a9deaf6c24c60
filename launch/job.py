"""Run a point on a node: `begin` before its ranks, `task` as each rank, `end` after them.

    python -m launch.job begin|task|end SUBMISSION FIRST [EXIT_CODE]

FIRST is the index of the array's first point. The batch script calls `begin` and `end`, srun calls `task` on every
node; all run the code that was frozen at submission, which is the current folder.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cli.actions import silence_torch_logs
from cli.entry import exit_on_error, exit_process, report_exception
from launch import requeue_policy, slurm
from launch.requeue_policy import AttemptHistory, RestartLimits
from launch.submission import Submission
from nanogpt.distributed import env
from nanogpt.distributed.env import STORE_VARIABLE, set_rank_env_from_slurm
from nanogpt.distributed.spawn import die_with_parent
from nanogpt.errors import STOPPED, BadEnvironment, BadInput, one_line
from nanogpt.files import open_regular, read_json_bytes, write_atomic
from nanogpt.run_directory import newest_step

ATTEMPT, INDEX = "NANOGPT_ATTEMPT", "NANOGPT_INDEX"  # what launch/local.py says in place of Slurm's variables
ATTEMPT_HEADER = "=== attempt "  # what each rank's log has before what an attempt says
LOG_TAIL_BYTES = 20_000  # bytes of a log that are looked through for a reason


class Attempt:
    """One attempt at one point, from the environment of this process."""

    def __init__(self, folder: Path, first: int) -> None:
        self.submission = Submission(folder)
        self.index = first + int(os.environ.get(INDEX, os.environ.get("SLURM_ARRAY_TASK_ID", "0")))
        self.number = int(os.environ.get(ATTEMPT, os.environ.get("SLURM_RESTART_COUNT", "0")))
        self.run = self.submission.runs[self.index]
        launcher = self.submission.launcher
        self.limits = RestartLimits(launcher.max_requeues, launcher.max_restarts_without_progress)

    @property
    def job(self) -> str:
        """Return `123_4`, or the process id for a local job."""
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        return os.environ.get("SUBMITIT_LOCAL_JOB_ID", str(os.getpid()))

    def exit_file(self, rank: int) -> Path:
        return self.submission.path / "exits" / f"{self.index}-{self.number}-{rank}.json"

    def read_history(self) -> AttemptHistory:
        starts = [event["step"] for event in self.submission.events(self.index) if event["event"] == "start"]
        return AttemptHistory(newest_step(self.run), starts)


def begin_attempt(attempt: Attempt) -> int:
    """Record the start. An attempt that can't be expected to get further ends here, before it occupies GPUs."""
    before = attempt.read_history()
    refusal = requeue_policy.reason_not_to_restart(before, attempt.limits) if before.from_steps else None
    facts = {"job": attempt.job, "attempt": attempt.number, "step": before.step, "host": os.uname().nodename}
    attempt.submission.add_event(attempt.index, "start", **facts)
    if refusal:
        print(f"error: {refusal}", file=sys.stderr)
        attempt.submission.add_event(attempt.index, "end", state="failed", why=refusal, code=1, step=before.step)
        return 1
    (attempt.submission.path / "exits").mkdir(exist_ok=True)
    return 0


def run_rank(attempt: Attempt) -> int:
    """Run one rank of the training and record how it ended. Return srun's exit code: also 0 for an orderly stop, since
    srun kills all ranks as soon as one returns another code.
    """
    set_rank_env_from_slurm(os.environ)
    adopt_local_env(attempt)
    rank = int(os.environ.get("RANK", "0"))
    if rank > 0:
        print(f"{ATTEMPT_HEADER}{attempt.number}, rank {rank}", flush=True)
    silence_torch_logs()
    try:
        os.chdir(attempt.submission.spec.cwd)
        from nanogpt.training.run import train

        code, why = train(attempt.submission.config(attempt.index)), ""
    except Exception as error:
        code, why = report_exception("train", error)
        write_exit(attempt, rank, code, one_line(why, 2000))
        exit_process(code)
    write_exit(attempt, rank, code, "asked to stop" if code == STOPPED else why)
    return 0 if code == STOPPED else code


def adopt_local_env(attempt: Attempt) -> None:
    """Set RANK and its like in a rank that launch/local.py started; its ranks meet through a file."""
    if "SUBMITIT_LOCAL_NTASKS" not in os.environ:
        return
    die_with_parent()
    world = os.environ["SUBMITIT_LOCAL_NTASKS"]
    if world == "1":
        return
    rank = os.environ["SUBMITIT_LOCAL_GLOBALID"]
    os.environ.update({"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world})
    os.environ[STORE_VARIABLE] = str(attempt.exit_file(0).with_suffix(".store"))


def write_exit(attempt: Attempt, rank: int, code: int, why: str) -> None:
    """Record exit code and reason for `end`; a full disk must not turn a success into a failure."""
    with suppress(OSError):
        write_atomic(attempt.exit_file(rank), json.dumps({"code": code, "why": why}))


def end_attempt(attempt: Attempt, code: int) -> int:
    """Decide what follows, and requeue the point if so. Return the exit code that Slurm shows."""
    state, why, final = judge_attempt(attempt, code)
    here = slurm.show_job(attempt.job) if state == "requeued" else {}
    if here.get("JobState", "RUNNING") != "RUNNING":  # cancelled, or Slurm is putting it back by itself
        print(f"left to Slurm: the job is {here['JobState']}", flush=True)
        return final
    why = explain_stop(attempt, here) if why == "asked to stop" else why
    attempt.submission.add_event(attempt.index, "end", state=state, why=why, code=final, step=newest_step(attempt.run))
    print(f"{state}{f': {why}' if why else ''}", flush=True)
    if state == "requeued":
        slurm.requeue(attempt.job)  # SLURM_JOB_ID of an array's last element is that of the whole array
        time.sleep(60)  # Slurm ends this script; ending by itself now would look like a job that is done
    return final


def judge_attempt(attempt: Attempt, code: int) -> tuple[requeue_policy.Outcome, str, int]:
    """Return what becomes of the point, the reason, and the exit code."""
    exits: dict[int, dict[str, Any]] = {}
    for path in attempt.submission.path.glob(f"exits/{attempt.index}-{attempt.number}-*.json"):
        with suppress(OSError, ValueError):
            exits[int(path.stem.rpartition("-")[2])] = read_json_bytes(path)
    how = requeue_policy.classify_end(code, exits, read_log_tail(attempt))
    state, why = requeue_policy.decide(how, attempt.read_history(), attempt.limits)
    return state, why, how.code if how.code >= 0 else 128 - how.code


def read_log_tail(attempt: Attempt) -> str:
    """Return the last output of this attempt's ranks."""
    text = ""
    for path in sorted(Path(attempt.submission.spec.logs).glob(f"{attempt.job}_*_log.out")):
        with suppress(OSError), open_regular(path) as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            text += file.read().decode(errors="replace").rpartition(ATTEMPT_HEADER)[2]
    return text


def explain_stop(attempt: Attempt, here: dict[str, str]) -> str:
    """Return why the attempt was told to stop: preempted, time limit or on request."""
    if here.get("PreemptTime", "None") not in ("None", "Unknown"):
        return "preempted"
    launcher = attempt.submission.launcher
    started = next(e["time"] for e in reversed(attempt.submission.events(attempt.index)) if e["event"] == "start")
    left = 60 * launcher.timeout_min - (time.time() - started)
    return "time limit" if left < launcher.signal_delay_s + 90 else "asked to stop"


def main() -> int:
    """Run the action that the command line names. Return the exit code."""
    what, folder, first, *rest = sys.argv[1:]
    attempt = Attempt(Path(folder), int(first))
    for module in (__file__, env.__file__):
        if Path(attempt.submission.spec.code) not in Path(module).parents:
            raise BadEnvironment(
                f"{one_line(attempt.submission.spec.code)}: the frozen code is gone; resubmit the point"
            )
    if what == "begin":
        print(f"{ATTEMPT_HEADER}{attempt.number}, job {attempt.job}: {attempt.run}", flush=True)
        return begin_attempt(attempt)
    if what == "task":
        return run_rank(attempt)
    if what == "end":
        return end_attempt(attempt, int(rest[0]))
    raise BadInput(f"{one_line(what)}: allowed: begin, task, end")


if __name__ == "__main__":
    exit_on_error("job", main)
