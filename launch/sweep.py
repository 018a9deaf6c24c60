"""`train.py -m`: the points of a study, here one by one or as jobs; the same command again does what is left to do."""

import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli.entry import is_rank
from cli.launcher_config import BasicLauncher, JobLauncher, SlurmLauncher
from cli.sweep_config import AllPoints, Halving, SweepConfig
from cli.sweep_request import Sweep
from launch import local, slurm
from launch.halving import halve
from launch.inline import run_here
from launch.precision_check import check_precisions
from launch.preview import preview, states, todo
from launch.resources import Resources, batch_options, placed, resources_of
from launch.search import search
from launch.snapshot import snapshot
from launch.study import Member, Study, study_of, study_of_one
from launch.submission import Facts, Submission, create, records, submissions
from launch.watching import verdict, watch
from nanogpt.config import TrainConfig
from nanogpt.console import say
from nanogpt.data.prepare import check_prepared
from nanogpt.errors import STOPPED, BadInput, one_line
from nanogpt.run_directory import parts_of


def run_sweep(sweep: Sweep[TrainConfig], main: Callable[[TrainConfig], int]) -> int:
    """Run or submit all points. Returns the exit code of the first that failed. Raises LabError, before it submits."""
    study = study_of(sweep)
    if sweep.excluded:
        say(f"sweep   {sweep.excluded} points left out by sweep.exclude")
    code = run_study(sweep, study, main)
    if code != STOPPED and not (sweep.points[0].config.dry_run or is_rank()):
        say(f"\nnext:\n  nanogpt report {one_line(study.path)}")
    return code


def run_study(sweep: Sweep[TrainConfig], study: Study, main: Callable[[TrainConfig], int]) -> int:
    """In one go, rung by rung, or as a search."""
    launcher, settings = sweep.launcher, sweep.settings

    def run(part: Study) -> int:
        if isinstance(launcher, BasicLauncher):
            return run_here(part, main, settings)
        return launch(part, launcher, settings)

    if isinstance(sweep.sweeper, AllPoints):
        return run(study)
    if isinstance(launcher, JobLauncher) and not launcher.wait:
        what = "rung" if isinstance(sweep.sweeper, Halving) else "trial"
        raise BadInput(f"hydra.launcher.wait=false: hydra/sweeper={sweep.sweeper.method} waits for each {what}")
    if isinstance(sweep.sweeper, Halving):
        return halve(study, sweep.sweeper, run)
    refuse_ranks("hydra/sweeper=optuna", "search")
    if isinstance(launcher, JobLauncher):
        ready(study, launcher)
    return search(sweep, sweep.sweeper, study.path, run)


def run_one(sweep: Sweep[TrainConfig]) -> int:
    """Submit a single run. Raises LabError."""
    assert isinstance(sweep.launcher, JobLauncher)
    return launch(study_of_one(sweep.points[0].config), sweep.launcher, sweep.settings)


def launch(study: Study, launcher: JobLauncher, settings: SweepConfig) -> int:
    """Submit what isn't done and isn't on its way; then watch, unless that isn't wanted."""
    groups = ready(study, launcher)
    if study.members[0].config.dry_run:
        preview(study, states(study), settings, (launcher, groups))
        return 0
    with records(study):
        for submission in submissions(study.path):
            submission.find_lost(slurm.find)
        before = states(study)
        preview(study, before, settings, (launcher, groups))
        for resources, members in groups.items():
            if start := todo(members, before, settings):
                hand_over(study, start, launcher, resources)
    if not launcher.wait:
        say(f"nanogpt status {one_line(study.path)}")
        return 0
    sent = {run for submission in submissions(study.path) for run in submission.runs}
    runs = {member.run.resolve() for member in study.members}
    here = [before[member.run] for member in study.members if member.run.resolve() not in sent]  # before, as a sweep
    code = watch(study.path, launcher.poll_s, runs & sent) if runs & sent else 0
    return code or (verdict(study.path, here) if here else 0)


def ready(study: Study, launcher: JobLauncher) -> dict[Resources, list[Member]]:
    """The points that can share an array, once all is checked that can be before. Raises LabError; writes nothing."""
    refuse_ranks("hydra/launcher", "submit the sweep")
    groups = by_resources(study.members, launcher)
    if isinstance(launcher, SlurmLauncher):
        refuse_odd_paths(study.logs.resolve())
    if study.members[0].config.dry_run:
        return groups
    check_precisions(study.members, here=not isinstance(launcher, SlurmLauncher))
    if isinstance(launcher, SlurmLauncher):
        slurm.require_slurm()
    for data in {member.config.data.model_dump_json(): member.config.data for member in study.members}.values():
        check_prepared(data)
    return groups


def refuse_ranks(what: str, verb: str) -> None:
    """What one process does for all points isn't for several. Raises BadInput."""
    if "RANK" in os.environ or os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        raise BadInput(f"{what}: every rank would {verb}; leave out torchrun or srun")


def refuse_odd_paths(logs: Path) -> None:
    """Slurm replaces %j and its like in the names of logs, and reads a backslash as its own. Raises BadInput."""
    if re.search(r"[%\\\n\r]", str(logs)):
        raise BadInput(
            f"{one_line(logs)}: Slurm can't write logs to a path with %, \\ or a line break; run it elsewhere"
        )


def by_resources(members: list[Member], launcher: JobLauncher) -> dict[Resources, list[Member]]:
    """The points that can share an array, each with its ranks in its config. Raises BadInput."""
    groups: dict[Resources, list[Member]] = {}
    for member in members:
        resources = resources_of(member.config, launcher)
        config = placed(member.config, resources)
        groups.setdefault(resources, []).append(Member(member.run, config))
    return groups


def hand_over(study: Study, members: list[Member], launcher: JobLauncher, resources: Resources) -> None:
    """Freeze points and code, and submit them. Raises BadEnvironment, BadInput with all that was submitted noted."""
    started = time.monotonic()
    facts = Facts(
        executor="slurm" if isinstance(launcher, SlurmLauncher) else "local",
        launcher=launcher.model_dump(mode="json"),
        resources=asdict(resources),
        code=str(snapshot((study.records / "code").absolute())),
        cwd=str(Path.cwd()),
        logs=str(study.logs.absolute()),
        python=sys.executable,
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
        time=time.time(),
        jobs=(),
    )
    submission = create(study, [frozen(member) for member in members], facts)
    jobs = submit(study, submission, launcher, resources)
    say(f"sent    {len(members)} points in {time.monotonic() - started:.1f} s: {jobs}; logs in {one_line(study.logs)}")


def frozen(member: Member) -> Member:
    """As it will be read again and again: its attempt is made, or found, once, now."""
    member.run.mkdir(parents=True, exist_ok=True)
    parts = parts_of(member.run.name)
    attempt = {"new_attempt": False, "attempt": parts[2] if parts else 1}
    return Member(member.run, member.config.model_copy(update=attempt))


def submit(study: Study, submission: Submission, launcher: JobLauncher, resources: Resources) -> str:
    """Hand a frozen submission over. Returns what it is called there."""
    if not isinstance(launcher, SlurmLauncher):
        return f"process {local.start(submission)} of this machine"
    count, limit = len(submission.runs), slurm.array_limit()
    token = secrets.token_hex(3)
    for first in range(0, count, limit):
        name = f"{launcher.name or study.path.name}-{token}-{first // limit}"
        options = batch_options(launcher, resources, name) | script(submission, launcher, first)
        size = min(limit, count - first)
        command = [*program(submission), "task", str(submission.path.absolute()), str(first)]
        submission.hand_over(
            name,
            first,
            size,
            lambda o=options, s=size, c=command: slurm.submit(o, study.logs.absolute(), s, c, launcher.submit_retries),
        )
    ids = [job.id for job in submission.facts.jobs]
    return f"job{'s' if len(ids) > 1 else ''} {', '.join(ids)}"


def program(submission: Submission) -> list[str]:
    """The interpreter that submits is the one that runs."""
    return [submission.facts.python, "-u", "-m", "launch.job"]


def script(submission: Submission, launcher: JobLauncher, first: int) -> dict[str, Any]:
    """The batch script's lines around srun. The shell ignores the signals that ask ranks to save."""
    code = shlex.quote(submission.facts.code)
    job = shlex.join(program(submission))
    where = f"{shlex.quote(str(submission.path.absolute()))} {first}"
    return {
        "setup": [
            *launcher.setup,
            "set +eu +o pipefail",  # whatever the lines above have set: what follows must be reached
            f"cd {code} || exit 5",
            f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}",
            "trap '' USR1 USR2",
            f"{job} begin {where} || exit $?",
        ],
        "teardown": ["code=$?", f"{job} end {where} $code"],
    }
