"""Run the points of a job on its nodes, usually one: `begin` before their ranks, `task` as each rank, `end` after them.

    python -m launch.job begin|task|end SUBMISSION FIRST [EXIT_CODE]

FIRST is the index of the array's first point. The batch script calls `begin` and `end`, srun calls `task` on every
node; all run the code that was frozen at submission, which is the current folder.

Points that share a job (hydra.launcher.points_per_job) end one by one, and the job is requeued while any needs more.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cli.actions import silence_torch_logs
from cli.entry import exit_on_error, exit_process, report_exception
from launch import requeue_policy, slurm
from launch.requeue_policy import AttemptHistory, RestartLimits
from launch.resources import visible_gpus
from launch.submission import Submission
from nanogpt.cpu_threads import share_cores
from nanogpt.distributed import env
from nanogpt.distributed.env import STORE_VARIABLE, set_rank_env_from_slurm
from nanogpt.distributed.spawn import die_with_parent
from nanogpt.errors import STOPPED, BadEnvironment, BadInput, one_line
from nanogpt.files import open_regular, read_json_bytes, write_atomic
from nanogpt.run_directory import newest_step

ATTEMPT, INDEX = "NANOGPT_ATTEMPT", "NANOGPT_INDEX"  # what launch/local.py says in place of Slurm's variables
ATTEMPT_HEADER = "=== attempt "  # what each rank's log has before what an attempt says
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
LOG_TAIL_BYTES = 20_000  # bytes of a log that are looked through for a reason


class Attempt:
    """One attempt at one point, from the environment of this process."""

    def __init__(self, folder: Path, first: int, position: int = 0) -> None:
        self.submission = Submission(folder)
        points = self.submission.points_per_job
        self.shares_job = points > 1
        self.index = first + points * int(os.environ.get(INDEX, os.environ.get("SLURM_ARRAY_TASK_ID", "0"))) + position
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

    @property
    def has_begun(self) -> bool:
        """Return whether the point has started and not ended, or been cancelled, since."""
        events = self.submission.events(self.index)
        return bool(events) and events[-1]["event"] == "start"

    @property
    def exit_code(self) -> int | None:
        """The exit code of a point that has ended and is not requeued, else None."""
        ended = [e for e in self.submission.events(self.index)[-1:] if e["event"] == "end" and e["state"] != "requeued"]
        return int(ended[0].get("code", 0)) if ended else None

    def read_history(self) -> AttemptHistory:
        starts = [event["step"] for event in self.submission.events(self.index) if event["event"] == "start"]
        return AttemptHistory(newest_step(self.run), starts)


def find_attempts(folder: Path, first: int) -> list[Attempt]:
    """Return the attempts at the points of this job, one usually."""
    one = Attempt(folder, first)
    left = len(one.submission.points) - one.index  # the last job may have fewer
    return [Attempt(folder, first, position) for position in range(min(one.submission.points_per_job, left))]


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
    if attempt.shares_job:
        adopt_share(attempt)
    else:
        set_rank_env_from_slurm(os.environ)
        adopt_local_env(attempt)
    rank = int(os.environ.get("RANK", "0"))
    if os.environ.get("SLURM_PROCID", str(rank)) != "0":  # the batch script writes to the log of the first task
        print(f"{ATTEMPT_HEADER}{attempt.number}, rank {rank}: {attempt.run}", flush=True)
    silence_torch_logs()
    try:
        os.chdir(attempt.submission.spec.cwd)
        from nanogpt.training.run import train

        code, why = train(attempt.submission.config(attempt.index)), ""
    except Exception as error:
        code, why = report_exception("train", error)
        record_exit(attempt, rank, code, one_line(why, 2000))
        exit_process(code)
    record_exit(attempt, rank, code, "asked to stop" if code == STOPPED else why)
    return 0 if code == STOPPED else code


def adopt_local_env(attempt: Attempt) -> None:
    """Set RANK and its like in a rank that launch/local.py started; its ranks meet through a file."""
    if "SUBMITIT_LOCAL_NTASKS" not in os.environ:
        return
    die_with_parent()
    set_local_ranks(attempt, int(os.environ["SUBMITIT_LOCAL_GLOBALID"]), int(os.environ["SUBMITIT_LOCAL_NTASKS"]))


def set_local_ranks(attempt: Attempt, rank: int, world: int) -> None:
    if world > 1:
        mine, all_ranks = str(rank), str(world)
        os.environ |= {"RANK": mine, "LOCAL_RANK": mine, "WORLD_SIZE": all_ranks, "LOCAL_WORLD_SIZE": all_ranks}
        os.environ[STORE_VARIABLE] = str(attempt.exit_file(0).with_suffix(".store"))


def adopt_share(attempt: Attempt) -> None:
    """Give a rank of a point that shares its job its rank, GPUs and cores. Raises BadEnvironment."""
    submission, tasks = attempt.submission, attempt.submission.tasks(attempt.index)
    points, each = submission.points_per_job, submission.spec.resources["gpus_per_node"]
    set_local_ranks(attempt, int(os.environ["SLURM_PROCID"]) - tasks[0], len(tasks))
    gpus, first = visible_gpus(), attempt.index % points * each
    if each and len(gpus) == points * each:
        os.environ[VISIBLE_GPUS] = ",".join(gpus[first : first + each])
    elif each and not 1 <= len(gpus) <= each:  # else srun has given each rank its own
        raise BadEnvironment(f"{VISIBLE_GPUS}={','.join(gpus)}: {points} points need {points * each} GPUs")
    if "SLURM_CPUS_PER_TASK" not in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", str(share_cores(points * len(tasks))))


def record_exit(attempt: Attempt, rank: int, code: int, why: str) -> None:
    """Record exit code and reason for `end`; a full disk must not turn a success into a failure. The last rank of a
    point that shares its job records how the point ended, unless it needs more.
    """
    with suppress(OSError):
        write_atomic(attempt.exit_file(rank), json.dumps({"code": code, "why": why}))
        if attempt.shares_job and len(read_exits(attempt)) == attempt.submission.spec.resources["tasks_per_node"]:
            state, why, final = judge_attempt(attempt, code)
            if state != "requeued":
                add_end(attempt, state, why, final)


def add_end(attempt: Attempt, state: requeue_policy.Outcome, why: str, code: int) -> None:
    """Record how an attempt ended, and print it."""
    attempt.submission.add_event(attempt.index, "end", state=state, why=why, code=code, step=newest_step(attempt.run))
    name = f"{attempt.run.name}: " if attempt.shares_job else ""
    print(f"{name}{state}{f': {why}' if why else ''}", flush=True)


def end_job(attempts: list[Attempt], code: int) -> int:
    """Decide what follows for each point, and requeue the job if any needs more. Return the exit code that Slurm
    shows.
    """
    ended = [attempt for attempt in attempts if attempt.has_begun or not attempt.shares_job]
    found = [(attempt, *judge_attempt(attempt, None if attempt.shares_job else code)) for attempt in ended]
    codes = [earlier for attempt in attempts if attempt not in ended and (earlier := attempt.exit_code)]
    codes += [final for *_, final in found if final]
    requeued = any(state == "requeued" for _, state, _, _ in found)
    here = slurm.show_job(attempts[0].job) if requeued else {}
    left = here.get("JobState", "RUNNING") != "RUNNING"  # cancelled, or Slurm is putting it back by itself
    for attempt, state, why, final in found:
        if state != "requeued" or not left:
            add_end(attempt, state, explain_stop(attempt, here) if why == "asked to stop" else why, final)
    if left:
        print(f"left to Slurm: the job is {here['JobState']}", flush=True)
    elif requeued:
        slurm.requeue(attempts[0].job)  # SLURM_JOB_ID of an array's last element is that of the whole array
        time.sleep(60)  # Slurm ends this script; ending by itself now would look like a job that is done
    return next(iter(codes), 0)


def judge_attempt(attempt: Attempt, code: int | None = None) -> tuple[requeue_policy.Outcome, str, int]:
    """Return what becomes of the point, the reason, and the exit code. `code` is srun's; None: it says
    nothing about this point.
    """
    log = read_log_tail(attempt)
    if code is None and "rror" in log:
        code = 1
    elif code is None:  # no error message and no traceback: it was killed; Slurm may say so in another task's log
        code, log = 128 + signal.SIGKILL, read_log_tail(attempt, of_job=True)
    how = requeue_policy.classify_end(code, read_exits(attempt), log)
    state, why = requeue_policy.decide(how, attempt.read_history(), attempt.limits)
    return state, why, how.code if how.code >= 0 else 128 - how.code


def read_exits(attempt: Attempt) -> dict[int, dict[str, Any]]:
    """Return exit code and reason of each rank of this attempt that recorded them."""
    exits: dict[int, dict[str, Any]] = {}
    for path in attempt.submission.path.glob(f"exits/{attempt.index}-{attempt.number}-*.json"):
        with suppress(OSError, ValueError):
            exits[int(path.stem.rpartition("-")[2])] = read_json_bytes(path)
    return exits


def read_log_tail(attempt: Attempt, of_job: bool = False) -> str:
    """Return the last output of this attempt's ranks, or of all ranks of its job."""
    text, logs = "", Path(attempt.submission.spec.logs)
    paths = sorted(logs.glob(f"{attempt.job}_*_log.out"))
    if attempt.shares_job and not of_job:
        paths = [logs / f"{attempt.job}_{task}_log.out" for task in attempt.submission.tasks(attempt.index)]
    for path in paths:
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
    attempts = find_attempts(Path(folder), int(first))
    submission = attempts[0].submission
    for module in (__file__, env.__file__):
        if Path(submission.spec.code) not in Path(module).parents:
            raise BadEnvironment(f"{one_line(submission.spec.code)}: the frozen code is gone; resubmit the point")
    if what == "begin":
        print(f"{ATTEMPT_HEADER}{attempts[0].number}, job {attempts[0].job}: {attempts[0].run}", flush=True)
        waiting = [attempt for attempt in attempts if attempt.exit_code is None or not attempt.shares_job]
        return min((begin_attempt(attempt) for attempt in waiting), default=0)
    if what == "task":
        position = int(os.environ["SLURM_PROCID"]) // len(submission.tasks(0)) if submission.points_per_job > 1 else 0
        mine = attempts[position : position + 1]
        return run_rank(mine[0]) if mine and (mine[0].has_begun or not mine[0].shares_job) else 0
    if what == "end":
        return end_job(attempts, int(rest[0]))
    raise BadInput(f"{one_line(what)}: allowed: begin, task, end")


if __name__ == "__main__":
    exit_on_error("job", main)
