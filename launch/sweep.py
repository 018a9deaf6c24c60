"""Run `train.py -m`: the points of a study in this process or as jobs. The same command again does what is left."""

import logging
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cli.entry import is_rank
from cli.launcher_config import BasicLauncher, JobLauncher, SlurmLauncher
from cli.plugin_config import PluginLauncher, PluginSweeper
from cli.sweep_config import AllPoints, Asha, Halving, SweepConfig
from cli.sweep_request import Sweep
from launch import local, slurm
from launch.asha import Slots, search_asynchronously
from launch.choose_way import choose_way
from launch.driver import start_driver
from launch.fused import check_fused
from launch.halving import check_decides_length, halve
from launch.inline import run_inline
from launch.plugins import run_on_plugin, search_with_plugin
from launch.precision_check import check_precisions
from launch.preview import build_preview, log_preview, read_states, runs_to_start
from launch.resources import Resources, batch_options, compute_resources, with_ranks
from launch.search import check_trains_to_end, search
from launch.sequential import add_seeds
from launch.snapshot import snapshot
from launch.status import RunStatus
from launch.study import PlannedRun, Study, plan_single_run, plan_study, with_fixed_attempt
from launch.submission import Submission, SubmissionSpec, create_submission, lock_records, read_submissions
from launch.watching import print_outcome, watch
from nanogpt.config import TrainConfig
from nanogpt.console import print_text
from nanogpt.data.prepare import check_prepared
from nanogpt.errors import STOPPED, BadInput, one_line
from nanogpt.json_output import print_result

logger = logging.getLogger(__name__)


def run_sweep(sweep: Sweep[TrainConfig], main: Callable[[TrainConfig], int]) -> int:
    """Run or submit all points. Return the first exit code that isn't 0. Raises LabError before submitting."""
    study = plan_study(sweep)
    if sweep.excluded:
        logger.info(f"sweep   {sweep.excluded} points excluded by sweep.exclude")
    code = run_study(sweep, study, main)
    if code != STOPPED and not (sweep.points[0].config.dry_run or is_rank()):
        print_text(f"\nnext:\n  nanogpt report {one_line(study.path)}")
    return code


def run_study(sweep: Sweep[TrainConfig], study: Study, main: Callable[[TrainConfig], int]) -> int:
    """Run a study with its sweeper: all points, successive halving or a search. Return the exit code."""
    launcher, settings = sweep.launcher, sweep.settings
    if settings.fused:
        check_not_a_rank(f"sweep.fused={settings.fused}", "train the points")
        check_fused(settings.fused, study.runs, launcher, sweep.sweeper)
    if settings.fused == "auto":
        launcher, settings = choose_way(study, settings)

    def run(part: Study) -> int:
        if isinstance(launcher, BasicLauncher):
            return run_inline(part, main, settings)
        if isinstance(launcher, PluginLauncher):
            check_not_a_rank(f"hydra/launcher={launcher.name}", "launch the points")
            return run_on_plugin(part, launcher, settings)
        return submit_study(part, launcher, settings)

    if settings.until and not isinstance(sweep.sweeper, AllPoints):
        raise BadInput(f"sweep.until={settings.until}: not with hydra/sweeper={sweep.sweeper.method}")
    if isinstance(sweep.sweeper, AllPoints) and settings.until is None:
        return run(study)
    if isinstance(launcher, JobLauncher) and not launcher.wait and not study.runs[0].config.dry_run:
        return run_as_job(sweep, study, launcher)
    if isinstance(sweep.sweeper, AllPoints):
        check_not_a_rank(f"sweep.until={settings.until}", "decide")
        return add_seeds(study, settings, run)
    if isinstance(sweep.sweeper, Halving):
        return halve(study, sweep.sweeper, run)
    check_not_a_rank(f"hydra/sweeper={sweep.sweeper.method}", "search")
    groups = check_and_group(study, launcher) if isinstance(launcher, JobLauncher) else {}
    if isinstance(sweep.sweeper, Asha):
        slots = find_slots(sweep.sweeper.slots, launcher, groups, settings, run)
        return search_asynchronously(sweep, sweep.sweeper, study, slots)
    if isinstance(sweep.sweeper, PluginSweeper):
        return search_with_plugin(sweep, sweep.sweeper, study.path, run)
    return search(sweep, sweep.sweeper, study.path, run)


def run_as_job(sweep: Sweep[TrainConfig], study: Study, launcher: JobLauncher) -> int:
    """Check a search and start a job that runs it. Return 0. Raises LabError before anything is written."""
    config, sweeper = study.runs[0].config, sweep.sweeper
    if isinstance(sweeper, AllPoints):
        raise BadInput(f"hydra.launcher.wait=false: sweep.until={sweep.settings.until} waits for each look")
    groups = check_and_group(study, launcher)
    check = check_decides_length if isinstance(sweeper, Halving | Asha) else check_trains_to_end
    check(config, f"hydra/sweeper={sweeper.method}")
    if isinstance(sweeper, Asha):
        find_slots(sweeper.slots, launcher, groups, sweep.settings, lambda _: 0)
    driver = start_driver(study, launcher)
    print_text(f"search  run by job {driver.job}; log: {one_line(driver.log)}\nnanogpt status {one_line(study.path)}")
    return 0


def submit_single_run(sweep: Sweep[TrainConfig]) -> int:
    """Submit a single run. Return the exit code. Raises LabError."""
    if isinstance(sweep.launcher, PluginLauncher):
        name = f"hydra/launcher={sweep.launcher.name}"
        raise BadInput(f"{name}: runs the points of a sweep: python train.py -m {name} …")
    assert isinstance(sweep.launcher, JobLauncher)
    return submit_study(plan_single_run(sweep.points[0].config), sweep.launcher, sweep.settings)


def submit_study(study: Study, launcher: JobLauncher, settings: SweepConfig) -> int:
    """Submit the runs that are neither done nor in progress; then watch unless launcher.wait=false. Return the exit
    code.
    """
    groups = check_and_group(study, launcher)
    if study.runs[0].config.dry_run:
        preview = build_preview(study, read_states(study), settings, (launcher, groups))
        print_result(study.runs[0].config.format, preview, log_preview)
        return 0
    before = submit_missing(study, groups, launcher, settings)
    if not launcher.wait:
        print_text(f"nanogpt status {one_line(study.path)}")
        return 0
    sent = {run for submission in read_submissions(study.path) for run in submission.runs}
    runs = {planned.path.resolve() for planned in study.runs}
    here = [before[planned.path] for planned in study.runs if planned.path.resolve() not in sent]  # trained here before
    code = watch(study.path, launcher.poll_s, runs & sent) if runs & sent else 0
    return code or (print_outcome(study.path, here) if here else 0)


def submit_missing(
    study: Study,
    groups: dict[Resources, list[PlannedRun]],
    launcher: JobLauncher,
    settings: SweepConfig,
    preview: bool = True,
) -> dict[Path, RunStatus]:
    """Submit the runs that are neither done nor in progress. Return the states before."""
    with lock_records(study):
        for submission in read_submissions(study.path):
            submission.recover_job_ids(slurm.find_job_by_name)
        before = read_states(study)
        if preview:
            log_preview(build_preview(study, before, settings, (launcher, groups)))
        for resources, planned_runs in groups.items():
            if start := runs_to_start(planned_runs, before, settings):
                freeze_and_submit(study, start, launcher, resources)
    return before


def find_slots(
    wanted: int | None,
    launcher: BasicLauncher | JobLauncher | PluginLauncher,
    groups: dict[Resources, list[PlannedRun]],
    settings: SweepConfig,
    run: Callable[[Study], int],
) -> Slots:
    """Return a launcher's slots for an asynchronous search. Raises BadInput if their number isn't possible or known."""
    if not isinstance(launcher, JobLauncher):
        if (wanted or 1) > 1 and isinstance(launcher, BasicLauncher):
            why = "this process trains one run at a time; choose hydra/launcher=submitit_local"
            raise BadInput(f"hydra.sweeper.slots={wanted}: {why}")
        return Slots(wanted or 1, run, None)
    count = wanted or launcher.array_parallelism
    if not isinstance(launcher, SlurmLauncher):
        count = min(local.count_slots(count, asdict(resources)) for resources in groups)
    if count is None:
        raise BadInput("hydra.sweeper.slots: null, but Slurm has no limit; give the number of jobs at once")
    jobs = launcher.model_copy(update={"array_parallelism": count})

    def start(part: Study) -> int:
        if part.runs[0].config.dry_run:
            return submit_study(part, jobs, settings)
        submit_missing(part, check_and_group(part, jobs), jobs, settings, preview=False)
        return 0

    return Slots(count, start, jobs.poll_s)


def check_and_group(study: Study, launcher: JobLauncher) -> dict[Resources, list[PlannedRun]]:
    """Check all that can be checked before submission; return runs by resources; write nothing. Raises LabError."""
    check_not_a_rank("hydra/launcher", "submit the sweep")
    groups = group_by_resources(study.runs, launcher)
    if isinstance(launcher, SlurmLauncher):
        check_log_path(study.logs.resolve())
    if study.runs[0].config.dry_run:
        return groups
    check_precisions(study.runs, here=not isinstance(launcher, SlurmLauncher))
    if isinstance(launcher, SlurmLauncher):
        slurm.check_slurm_available()
    for data in {planned.config.data.model_dump_json(): planned.config.data for planned in study.runs}.values():
        check_prepared(data)
    return groups


def check_not_a_rank(what: str, verb: str) -> None:
    """Raise BadInput if this process is one of several ranks."""
    if "RANK" in os.environ or os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        raise BadInput(f"{what}: every rank would {verb}; leave out torchrun or srun")


def check_log_path(logs: Path) -> None:
    """Raise BadInput if Slurm can't write logs to this path: it replaces %j and its like, and reads backslashes."""
    if re.search(r"[%\\\n\r]", str(logs)):
        raise BadInput(
            f"{one_line(logs)}: Slurm can't write logs to a path with %, \\ or a line break; run it elsewhere"
        )


def group_by_resources(planned_runs: list[PlannedRun], launcher: JobLauncher) -> dict[Resources, list[PlannedRun]]:
    """Return the runs that can share an array, each with its ranks in its config. Raises BadInput."""
    groups: dict[Resources, list[PlannedRun]] = {}
    for planned in planned_runs:
        resources = compute_resources(planned.config, launcher)
        config = with_ranks(planned.config, resources)
        groups.setdefault(resources, []).append(PlannedRun(planned.path, config))
    return groups


def freeze_and_submit(
    study: Study, planned_runs: list[PlannedRun], launcher: JobLauncher, resources: Resources
) -> None:
    """Freeze configs and code, and submit. Raises BadEnvironment or BadInput after recording what was submitted."""
    started = time.monotonic()
    spec = SubmissionSpec(
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
    submission = create_submission(study, [with_fixed_attempt(planned) for planned in planned_runs], spec)
    jobs = submit_jobs(study, submission, launcher, resources)
    took = time.monotonic() - started
    logger.info(f"sent    {len(planned_runs)} points in {took:.1f} s: {jobs}; logs in {one_line(study.logs)}")


def submit_jobs(study: Study, submission: Submission, launcher: JobLauncher, resources: Resources) -> str:
    """Submit a frozen submission. Return the names of its jobs."""
    if not isinstance(launcher, SlurmLauncher):
        return f"process {local.start_pool(submission)} of this machine"
    points = submission.points_per_job
    resources = replace(resources, points_per_job=points)
    count, limit = len(submission.runs), slurm.array_limit() * points
    token = secrets.token_hex(3)
    for first in range(0, count, limit):
        name = f"{launcher.name or study.path.name}-{token}-{first // limit}"
        options = batch_options(launcher, resources, name) | batch_script_lines(submission, launcher, first)
        size = min(limit, count - first)
        command = [*job_command(submission), "task", str(submission.path.absolute()), str(first)]
        submission.submit_points(
            name,
            first,
            size,
            lambda o=options, s=-(-size // points), c=command: slurm.submit_array(
                o, study.logs.absolute(), s, c, launcher.submit_retries
            ),
        )
    ids = [job.id for job in submission.spec.jobs]
    return f"job{'s' if len(ids) > 1 else ''} {', '.join(ids)}"


def job_command(submission: Submission) -> list[str]:
    return [submission.spec.python, "-u", "-m", "launch.job"]


def batch_script_lines(submission: Submission, launcher: JobLauncher, first: int) -> dict[str, Any]:
    """Return the lines of the batch script around srun."""
    job = shlex.join(job_command(submission))
    where = f"{shlex.quote(str(submission.path.absolute()))} {first}"
    return {
        "setup": [*slurm.setup_lines(launcher.setup, submission.spec.code), f"{job} begin {where} || exit $?"],
        "teardown": ["code=$?", f"{job} end {where} $code"],
    }
