"""Run directories: found again by the signature of the config, and locked by one process at a time.

runs/<name>-<signature>/{config.json, tokenizer.json, metrics.jsonl, timing.jsonl, status.json, provenance.json,
                         log.txt, checkpoints/, samples/, plots/, and of trackers wandb.json, wandb/, tensorboard/}
"""

import json
import os
import re
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.console import format_command
from nanogpt.cost import find_last_record
from nanogpt.entry_names import attempt_name, choose_attempt, is_attempt, parse_run_name, parse_step
from nanogpt.errors import BadCheckpoint, BadInput, Locked, hint, one_line
from nanogpt.files import (
    hold_lock,
    list_entries,
    mtime,
    open_no_link,
    open_regular,
    read_json_bytes,
    read_json_object,
    write_atomic,
)
from nanogpt.metrics_file import RowLog
from nanogpt.run_identity import (
    changed_keys,
    find_earlier_digits,
    keys_of_same_content,
    read_starts,
    resolve_digests,
    short_signature,
)
from nanogpt.run_state import read_start_time
from nanogpt.tracking.origin import Origin, get_run_id, update_origin

if TYPE_CHECKING:
    from nanogpt.checkpoint import Checkpoints

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.*)", re.ASCII)


class RunDirectory:
    """Paths and small files of one run."""

    def __init__(self, path: Path, keep: int = 2, keep_every: int | None = None) -> None:
        self.path, self.keep, self.keep_every = path, keep, keep_every
        self.changes: list[str] = []
        """Keys that differ from the previous start, as `key: old -> new`."""
        self.notes: list[str] = []
        """Damage of the run's files found at this start, for provenance.json."""
        self.opened, self.last_record = 0.0, dict[str, float | None]()
        """Time at which the run was opened for training, and the end of the start before."""
        self.origin: Origin | None = None
        """Identity of the run, once it is opened."""
        self.new_fork = False
        """True if this start forked the run, or found that it is a copy and gave it an id of its own."""
        self.metrics = RowLog(path / "metrics.jsonl")
        self.timing = RowLog(path / "timing.jsonl")

    @cached_property
    def checkpoints(self) -> "Checkpoints":
        """The checkpoints of the run."""
        from nanogpt.checkpoint import Checkpoints  # imports torch, which readers of runs do not need

        return Checkpoints(self.path / "checkpoints", self.keep, self.keep_every)

    @property
    def plot(self) -> Path:
        return self.path / "plots" / "loss.png"

    def read_config(self) -> TrainConfig:
        """Return the config of the run. Raises BadCheckpoint."""
        return schema.read_config(TrainConfig, self.path / "config.json")

    def write_status(self, state: str, **facts: Any) -> None:
        """Write status.json, which tells other programs what the run is doing."""
        about = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), "updated": time.time()}
        about |= {"pid_start": read_start_time(os.getpid())} | facts
        write_atomic(self.path / "status.json", json.dumps(about, indent=1) + "\n")

    def read_status(self) -> dict[str, Any]:
        """Return the content of status.json, {} if there is none that can be read."""
        return read_json_object(self.path / "status.json")

    def read_starts(self) -> list[dict[str, Any]]:
        """Return the starts of the run in provenance.json, oldest first."""
        return read_starts(self.path)

    def add_start(self, facts: dict[str, Any]) -> None:
        """Append a start to provenance.json."""
        write_atomic(self.path / "provenance.json", json.dumps([*self.read_starts(), facts], indent=1) + "\n")

    def count_starts_at(self, step: int) -> int:
        """Return how many of the last starts in a row began at this step, and so wrote no later checkpoint."""
        return sum(1 for _ in takewhile(lambda start: start.get("from_step") == step, reversed(self.read_starts())))

    def read_last_log_line(self) -> str:
        """Return the last line of log.txt without its time, or an empty string."""
        with suppress(OSError), open_regular(self.path / "log.txt") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
            if lines and (line := LOG_LINE.match(lines[-1])):
                return line[1]
        return ""


def locate_run(config: TrainConfig) -> Path:
    """Return the folder of this config's run: `resume.run`, else a new attempt with `new_attempt`, else the latest."""
    if config.resume.run is not None and not config.resume.fork:
        return find_run(config.resume.run, config.runs_dir, "resume.run").path
    config, folder = resolve_config(config), Path(config.runs_dir)
    names = [entry.name for entry in list_entries(folder)]
    name = find_run_name(folder, names, config.run_name, config)
    if config.attempt is not None:
        check_attempt(folder, names, name, config.attempt)
        return folder / attempt_name(name, config.attempt)
    return folder / choose_attempt(name, names, config.new_attempt)


def resolve_config(config: TrainConfig) -> TrainConfig:
    """Return the config with the digests of its files and the parent of a fork. Raises BadInput without that run."""
    config = resolve_digests(config)
    if config.resume.run is None or config.resume.parent is not None:
        return config
    run = find_run(config.resume.run, config.runs_dir, "resume.run")
    if config.resume.fork:
        about = {
            "parent": get_run_id(run.path, next(iter(run.read_starts()), {})),
            "run": str(run.path),
        }  # the path of a study differs
    else:  # a fork that is continued
        stored = run.read_config().resume
        about = {"parent": stored.parent, "step": stored.step}
    return config.model_copy(update={"resume": config.resume.model_copy(update=about)})


def find_run_name(folder: Path, names: Sequence[str], run_name: str, config: TrainConfig) -> str:
    """Return the name of a resolved config's run directory, without the number of an attempt.

    It has the digits of an existing run of the same identity, else those of the config's signature.
    """
    name = f"{run_name}-{short_signature(config)}"
    if config.new_attempt or any(is_attempt(name, other) for other in names):
        return name
    found = [(parts, other) for other in sorted(names) if (parts := parse_run_name(other)) and parts[0] == run_name]
    earlier = find_earlier_digits(config, {parts[1]: folder / other for parts, other in found})
    return name if earlier is None else f"{run_name}-{earlier}"


def check_attempt(folder: Path, names: Sequence[str], name: str, number: int) -> None:
    """Raise BadInput if neither this attempt nor the previous one exists."""
    if number > 1 and not {attempt_name(name, number), attempt_name(name, number - 1)} & set(names):
        latest = choose_attempt(name, names, False)
        have = f"the latest is {latest}" if latest in names else "there is none yet"
        raise BadInput(f"attempt={number}: no such attempt in {one_line(folder)}, nor the one before it; {have}")


def newest_step(path: Path) -> int:
    """Return the step of the newest checkpoint, not verified; 0 if there is none. Without torch."""
    folder = path / "checkpoints"
    return max((step for entry in list_entries(folder) if (step := parse_step(entry.name)) is not None), default=0)


@contextmanager
def open_run(config: TrainConfig) -> Generator[RunDirectory, None, None]:
    """Create the run directory if needed, and lock it while inside. Raises Locked, BadCheckpoint, BadInput."""
    from nanogpt import forking  # imports torch, which readers of runs do not need

    config = resolve_config(config)
    path = locate_run(config)
    forks = config.resume.fork and not (path / "config.json").exists()
    parent = find_run(str(config.resume.run), config.runs_dir, "resume.run") if forks else None
    source = None
    if parent is not None:
        forking.check_fork(parent.read_config(), config, parent.path)
        source = forking.choose_checkpoint(parent.path, config.resume.step)
    if path.is_symlink() and not (path / "config.json").exists():
        raise BadCheckpoint(f"{one_line(path)}: is a link, but to no run directory; remove it, or give another name")
    path.mkdir(parents=True, exist_ok=True)
    with hold_lock(path / ".lock", wait=False) as mine:
        run = RunDirectory(path, config.checkpoint.keep, config.checkpoint.keep_every)
        run.opened = time.time()
        if not mine:
            raise Locked(f"{one_line(path)}: {describe_owner(path)} is training here")
        write_owner(path)
        if (path / "config.json").exists():
            run.changes = check_changes(run, config)
            run.last_record = find_last_record(path)
        else:
            if parent is not None and source is not None:
                forking.copy_parent(parent.path, source, path)
                run.new_fork = True
            write_atomic(path / "config.json", schema.to_json(config))
        run.checkpoints.clean()
        run.origin, copied = update_origin(path, next(iter(run.read_starts()), {}), newest_step(path))
        run.new_fork |= copied
        yield run


def check_changes(run: RunDirectory, config: TrainConfig) -> list[str]:
    """Return the changes of this config to a run. Raises BadCheckpoint naming each key that may not change."""
    before, now = dict(schema.iter_values(run.read_config())), dict(schema.iter_values(config))
    changed = changed_keys(before, now)
    allowed = {*config.resume.allow_change, "hardware.precision"}  # compared by checkpoints, after `auto` is resolved
    changed = [key for key in changed if not key.startswith("resume.")]
    allowed |= keys_of_same_content(before, now)
    digest = "data.source_sha256"
    if config.resume.run is None and before[digest] is None and now[digest] is not None:
        allowed |= {
            "data.source",
            "data.source_sha256",
        }  # found by content; the checkpoint checks its tokens
    if config.resume.run is not None and run.checkpoints.steps():
        allowed.add("init_from_sha256")  # its initial weights are not read again
    kinds = {key: schema.change_policy(field) for key, field in schema.iter_fields(TrainConfig)}
    for kind in ("fixed", "guarded"):
        refused = [key for key in changed if kinds[key] == kind and key not in allowed]
        if "data" in allowed:
            refused = [key for key in refused if not key.startswith("data.")]
        if refused:
            what = ", ".join(f"{key} (was {one_line(before[key])}, now {one_line(now[key])})" for key in refused)
            remedy = (
                "another model, data set or seed is another run: leave out resume.run"
                if kind == "fixed"
                else f"resume.allow_change=[{','.join(refused)}] goes on with them"
            )
            raise BadCheckpoint(f"{one_line(run.path)}: was made with other values: {what}; {remedy}")
    return [
        f"{key}: {before[key]} -> {now[key]}"
        for key in changed
        if not key.startswith(("new_attempt", "attempt", "stop_at_fraction"))
    ]


def write_owner(path: Path) -> None:
    """Write host, process and job to the lock file of a run, for error messages of other processes."""
    facts = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
    with open(path / ".lock", "w", opener=open_no_link) as file:
        file.write(json.dumps(facts | {"since": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n")


def describe_owner(path: Path) -> str:
    """Return the process that holds the lock of a run: `process 17 on node3 (job 5), since 2026-01-02 10:00:00,`."""
    try:
        facts = read_json_bytes(path / ".lock")
        job = f" (job {one_line(facts['job'])})" if facts["job"] else ""
        return f"process {int(facts['pid'])} on {one_line(facts['host'])}{job}, since {one_line(facts['since'])},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def find_run(run: str | None, runs_dir: str, key: str = "run") -> RunDirectory:
    """Return the run given as a folder, as a name in `runs_dir`, or by None: the latest with a checkpoint.

    Raises BadInput.
    """
    folder = Path(runs_dir)
    if run is None:
        runs = [RunDirectory(path.parent) for path in folder.glob("**/config.json")]
        if not runs:
            remedy = f"train one first: {format_command('train')}"
            raise BadInput(f"run=null: no run under {one_line(Path(runs_dir).absolute())}; {remedy}")
        return max(runs, key=lambda run: (bool(run.checkpoints.steps()), newest_change(run.path)))
    for path in (Path(run), folder / run):
        if os.path.exists(path / "config.json"):  # pathlib would raise for a name that is too long
            return RunDirectory(path)
    inside = [
        path for study in (run, folder / run) if os.path.isdir(study) for path in Path(study).glob("*/config.json")
    ]
    if inside:
        raise BadInput(f"{key}={one_line(run)}: a folder of runs; name one of them, e.g. {one_line(inside[0].parent)}")
    names = [path.parent.name for path in folder.glob("*/config.json")]
    raise BadInput(f"{key}={one_line(run)}: not a run directory{hint(Path(run).name, names)}")


def newest_change(path: Path) -> float:
    """Return when a run was last modified; 0 if it has been deleted."""
    return max(mtime(path / name) for name in ("config.json", "status.json"))
