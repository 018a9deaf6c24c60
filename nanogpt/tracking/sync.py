"""`nanogpt sync`: send trackers the steps that they lack, from metrics.jsonl."""

from pathlib import Path

from nanogpt.config import SyncConfig, TrackerName, TrainConfig
from nanogpt.console import print_text
from nanogpt.errors import BadEnvironment, Locked, one_line
from nanogpt.files import hold_lock
from nanogpt.run_directory import RunDirectory, describe_owner, find_run, newest_step
from nanogpt.tracking.origin import update_origin
from nanogpt.tracking.run_metadata import make_run_metadata
from nanogpt.tracking.tail import MetricsTail
from nanogpt.tracking.trackers import check_trackers, make_backend


def sync_runs(config: SyncConfig) -> int:
    """Bring the trackers of every run up to date. Raises BadEnvironment at the first that fails, Locked, BadInput."""
    runs = [find_run(name, config.runs_dir, "runs") for name in config.runs or (None,)]
    configs = [with_sync_options(run.read_config(), config) for run in runs]
    check_trackers(configs[0].tracking)
    for run, run_config in zip(runs, configs, strict=True):
        with hold_lock(run.path / ".lock", wait=False) as locked:
            if not locked:
                raise Locked(
                    f"{one_line(run.path)}: {describe_owner(run.path)} is training here, and sends the missing steps"
                )
            origin, forked = update_origin(run.path, next(iter(run.read_starts()), {}), newest_step(run.path))
            if forked and origin.forked_from:
                print_text(f"{run.path}: a copy of {origin.forked_from.path}: sent as a new run (id {origin.id})")
            for name in config.trackers:
                sync_run(run, run_config, name)
    return 0


def with_sync_options(config: TrainConfig, options: SyncConfig) -> TrainConfig:
    """Return the run's config with the trackers of the command, online and required."""
    changes = {"trackers": options.trackers, "mode": "online", "timeout": options.timeout, "required": True}
    changes |= {key: value for key in ("project", "entity") if (value := getattr(options, key)) is not None}
    return config.model_copy(update={"tracking": config.tracking.model_copy(update=changes)})


def sync_run(run: RunDirectory, config: TrainConfig, name: TrackerName) -> None:
    """Bring one tracker of one run up to date. Raises BadEnvironment."""
    status = run.read_status()
    last_step = status.get("steps", -1)
    rows = MetricsTail(run.metrics.path, lambda step: config.eval.is_due(step, last_step))
    tracker = make_backend(name, make_run_metadata(config, run.path, run.read_starts()), print_text)
    try:
        last, count = tracker.start(), 0
        for row in rows.read_steps():
            if row["step"] > last:
                tracker.log_row(row)
                count += 1
        state = status.get("state", "stopped")
        tracker.finish("stopped" if state == "running" else state, find_plot(run))
    except Exception as error:
        raise BadEnvironment(f"{one_line(run.path)}: {name}: {one_line(error, 400)}") from error
    print_text(f"{run.path}: {name}: {f'{count:,} steps sent' if count else 'nothing was missing'}")


def find_plot(run: RunDirectory) -> Path | None:
    return run.plot if run.plot.exists() else None
